"""Draws the backgrounds of scenes: muted and light (the night apart), so that objects stand out."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw


@lru_cache(maxsize=8)
def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel middles as shares of the side: x (1, side) and y (side, 1)."""
    line = ((np.arange(side) + 0.5) / side).astype(np.float32)
    return line[None, :], line[:, None]


def _noise(rng: np.random.Generator, side: int, cells: int, rows: int | None = None) -> np.ndarray:
    """Smooth noise around 0, mostly within -1 .. 1."""
    coarse = rng.normal(0, 0.6, (rows or cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def _gradient(side: int, *stops: tuple[int, int, int]) -> np.ndarray:
    """Colours from top to bottom, (side, side, 3)."""
    _, y = _grid(side)
    at = np.linspace(0, 1, len(stops))
    columns = [np.interp(y[:, 0], at, channel) for channel in zip(*stops, strict=True)]
    column = np.stack(columns, axis=1).astype(np.float32)
    return np.repeat(column[:, None], side, axis=1)


def _finish(rng: np.random.Generator, colour: np.ndarray) -> Image.Image:
    """Adds a slight change of tone and rounds to bytes."""
    tone = rng.uniform(-6, 6, 3).astype(np.float32)
    return Image.fromarray(np.clip(colour + tone, 0, 255).astype(np.uint8))


def _layer(
    rng: np.random.Generator, side: int, height: float, swing: float, waves: float
) -> np.ndarray:
    """Share of each pixel below a wavy line, edges one pixel soft."""
    return _below(side, height, swing, waves, rng.uniform(0, 2 * np.pi, 2))


def _below(side: int, height: float, swing: float, waves: float, phase: np.ndarray) -> np.ndarray:
    x, y = _grid(side)
    line = np.sin(2 * np.pi * waves * x + phase[0]) + 0.4 * np.sin(
        2 * np.pi * waves * 2.3 * x + phase[1]
    )
    return np.clip((y - height - swing * line) * side + 0.5, 0, 1)[..., None]


def _sand(rng: np.random.Generator, side: int) -> Image.Image:
    x, y = _grid(side)
    warp = _noise(rng, side, 4) * 1.6
    tilt = rng.uniform(-0.25, 0.25)
    ripple = np.sin(2 * np.pi * (9 * y + tilt * 9 * x) + warp * 2.2)
    grain = rng.normal(0, 3.2, (side, side)).astype(np.float32)
    tone = ripple * 5.5 + _noise(rng, side, 3) * 7 + grain
    return _finish(rng, _gradient(side, (240, 224, 190), (226, 204, 164)) + tone[..., None])


def _grass(rng: np.random.Generator, side: int) -> Image.Image:
    ground = _gradient(side, (186, 205, 150), (150, 178, 116))
    ground += (_noise(rng, side, 5) * 8)[..., None]
    image = _finish(rng, ground).resize((2 * side, 2 * side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    count = 170
    roots = rng.uniform(0, 2 * side, (count, 2))
    lean, length = rng.normal(0, 0.012, count), rng.uniform(0.04, 0.075, count)
    tones = rng.integers(-26, 27, count)
    for (x, y), sway, tall, tone in sorted(
        zip(roots.tolist(), lean, length, tones.tolist(), strict=True),
        key=lambda blade: blade[0][1],
    ):
        width = 0.008 * 2 * side
        tip = (x + sway * 2 * side, y - tall * 2 * side)
        draw.polygon(
            [(x - width, y), (x + width, y), tip], fill=(150 + tone, 182 + tone, 112 + tone)
        )
    return image.reduce(2)


def _hills(rng: np.random.Generator, side: int) -> Image.Image:
    colour = _gradient(side, (214, 232, 236), (250, 240, 216), (250, 240, 216))
    tones = ((188, 208, 190), (166, 194, 158), (146, 180, 132), (128, 165, 112))
    for index, tone in enumerate(tones):
        height = 0.36 + 0.18 * index + rng.uniform(-0.04, 0.04)
        share = _layer(rng, side, height, 0.05, rng.uniform(0.5, 1.1))
        colour += (np.asarray(tone, dtype=np.float32) - colour) * share
    return _finish(rng, colour + (_noise(rng, side, 40) * 2.5)[..., None])


def _clouds(rng: np.random.Generator, side: int) -> Image.Image:
    colour = _gradient(side, (158, 198, 226), (204, 226, 236))
    cover = Image.new("L", (2 * side, 2 * side))
    draw = ImageDraw.Draw(cover)
    for _ in range(int(rng.integers(4, 7))):
        x, y = rng.uniform(0, 2 * side, 2)
        size = rng.uniform(0.1, 0.17) * side
        for offset, lift, scale in (
            (-1.5, 0, 0.75),
            (-0.5, -0.5, 1),
            (0.6, -0.25, 0.9),
            (1.5, 0.1, 0.7),
        ):
            r, cx, cy = size * scale, x + offset * size, y + lift * size
            draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=255)
        draw.rectangle((x - 2 * size, y + size * 0.45, x + 2 * size, y + 2 * size), fill=0)
    share = np.asarray(cover.reduce(2), dtype=np.float32)[..., None] / 255 * 0.62
    return _finish(rng, colour + (np.float32(247) - colour) * share)


def _night_sky(rng: np.random.Generator, side: int) -> Image.Image:
    colour = _gradient(side, (24, 26, 58), (44, 44, 88), (78, 70, 116))
    colour += (_noise(rng, side, 4) * 5)[..., None]
    glow = np.zeros((side, side), dtype=np.float32)
    count = 70
    rows, columns = rng.integers(1, side - 1, (2, count))
    bright = rng.uniform(30, 150, count).astype(np.float32)
    for shift, share in ((0, 1.0), (-1, 0.35), (1, 0.35)):
        glow[rows + shift, columns] = bright * share
        glow[rows, columns + shift] = bright * share
    return _finish(rng, colour + glow[..., None])


def _sea(rng: np.random.Generator, side: int) -> Image.Image:
    count = 6
    depth = np.zeros((side, side, 1), dtype=np.float32)
    foam = np.zeros_like(depth)
    for index in range(count):
        height = 0.1 + index * 0.16 + rng.uniform(-0.02, 0.02)
        waves, phase = rng.uniform(2.2, 3.2), rng.uniform(0, 2 * np.pi, 2)
        water = _below(side, height, 0.018, waves, phase)
        foam += _below(side, height - 0.016, 0.018, waves, phase) - water
        depth += water
    deep = np.asarray((96, 150, 170), dtype=np.float32)
    light = np.asarray((196, 222, 224), dtype=np.float32)
    return _finish(rng, light + (deep - light) * (depth / count) + foam * 26)


def _snow(rng: np.random.Generator, side: int) -> Image.Image:
    colour = _gradient(side, (176, 190, 212), (204, 214, 228))
    for index, tone in enumerate(((204, 214, 230), (216, 224, 237), (227, 233, 243))):
        height = 0.36 + 0.22 * index + rng.uniform(-0.05, 0.05)
        share = _layer(rng, side, height, 0.045, rng.uniform(0.5, 1.0))
        colour += (np.asarray(tone, dtype=np.float32) - colour) * share
    flakes = Image.new("L", (2 * side, 2 * side))
    draw = ImageDraw.Draw(flakes)
    for x, y, r in rng.uniform((0, 0, 1.2), (2 * side, 2 * side, 3.6), (60, 3)).tolist():
        draw.ellipse((x - r, y - r, x + r, y + r), fill=200)
    share = np.asarray(flakes.reduce(2), dtype=np.float32)[..., None] / 255
    return _finish(rng, colour + (250 - colour) * share)


def _wood(rng: np.random.Generator, side: int) -> Image.Image:
    x, y = _grid(side)
    planks = int(rng.integers(4, 6))
    plank = np.floor(y * planks).astype(int)
    tone = rng.uniform(-12, 12, planks).astype(np.float32)[plank]
    shift = rng.uniform(0, 5, planks).astype(np.float32)[plank]
    warp = _noise(rng, side, 3, 9)
    grain = np.sin(2 * np.pi * (26 * y + shift) + warp * 3.4 + x * 2)
    seam = np.abs(y * planks - np.round(y * planks)) * side / planks
    dark = np.clip(1.4 - seam, 0, 1) * -46
    colour = np.asarray((203, 172, 136), dtype=np.float32)
    return _finish(
        rng, colour + (tone + grain * 5 + dark + _noise(rng, side, 60, 90) * 3)[..., None]
    )


def _bricks(rng: np.random.Generator, side: int) -> Image.Image:
    x, y = _grid(side)
    rows, columns = 9, 5
    row = np.floor(y * rows).astype(int)
    along = x * columns + (row % 2) * 0.5
    column = np.floor(along).astype(int)
    tone = rng.uniform(-12, 12, (rows, columns + 1)).astype(np.float32)[row, column]
    across = np.abs(y * rows - np.round(y * rows)) * side / rows
    beside = np.abs(along - np.round(along)) * side / columns
    mortar = np.clip(2.2 - np.minimum(across, beside), 0, 1)[..., None]
    grain = _noise(rng, side, 50) * 4
    brick = np.asarray((208, 170, 152), dtype=np.float32) + (tone + grain)[..., None]
    return _finish(rng, brick + (np.asarray((228, 216, 205), dtype=np.float32) - brick) * mortar)


def _pebbles(rng: np.random.Generator, side: int) -> Image.Image:
    image = Image.new("RGB", (2 * side, 2 * side), (146, 142, 138))
    draw = ImageDraw.Draw(image)
    cell = 2 * side / 11
    for index in rng.permutation(144).tolist():
        x = (index % 12 + rng.uniform(-0.25, 0.25)) * cell
        y = (index // 12 + rng.uniform(-0.25, 0.25)) * cell
        rx, ry = rng.uniform(0.42, 0.66, 2) * cell
        tone = int(rng.integers(168, 208))
        warm = int(rng.integers(-6, 13))
        for inset, change in ((0.0, -30), (1.6, 0), (0.34 * cell, 9)):
            box = (x - rx + inset, y - ry + inset, x + rx - inset, y + ry - inset * 1.3)
            if box[2] > box[0] and box[3] > box[1]:
                draw.ellipse(box, fill=(tone + change + warm, tone + change, tone + change - warm))
    return image.reduce(2)


BACKGROUNDS: dict[str, Callable[[np.random.Generator, int], Image.Image]] = {
    "sand": _sand,
    "grass": _grass,
    "hills": _hills,
    "clouds": _clouds,
    "night sky": _night_sky,
    "sea": _sea,
    "snow": _snow,
    "wood": _wood,
    "bricks": _bricks,
    "pebbles": _pebbles,
}
"""Background word to the function that draws it from a generator and the side in pixels."""
