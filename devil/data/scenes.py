"""Draws captioned scenes: a few objects on a background, with exact pixel masks and true captions.

A scene follows from one integer alone. Every object has a colour, a texture, a kind, a size and a
place; its mask holds the pixels that show it, later objects hiding earlier ones. Captions come from
a small grammar that names an object in one order (size, colour, texture, kind: "a large red striped
circle"), so that a caption can be checked by its words. No background, size or place is named
with a word that also names a colour, texture or kind.

Shards are written as img2dataset writes them; reading captions out of them is the work of the
caption sources in this package.
"""

import io
import json
import math
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from devil.errors import ConfigError, DataError

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (219, 42, 46),
    "orange": (247, 127, 22),
    "yellow": (255, 214, 41),
    "green": (38, 158, 74),
    "blue": (38, 98, 214),
    "purple": (124, 58, 178),
    "pink": (255, 143, 190),
    "white": (250, 249, 245),
}
"""Colour word to the middle of its fill, in sRGB."""

TEXTURES = ("plain", "striped", "dotted", "checked")
SIZES = {"small": (0.115, 0.145), "large": (0.19, 0.24)}
"""Size word to the range of radii, as shares of the image's side."""

SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
"""Size to the words that captions may use for it."""

PLACES = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)
"""Place words as rows and columns of thirds of the image."""

CAPTIONS_PER_SCENE = 5
_SUPERSAMPLING = 4
_MARGIN = 0.035
_MOST_OVERLAP = 0.04


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What scenes may contain. The defaults are the embedded data set."""

    image_size: int = 160
    """Height and width of the image in pixels."""
    min_objects: int = 1
    """Fewest objects in a scene."""
    max_objects: int = 4
    """Most objects in a scene."""
    kinds: tuple[str, ...] = (
        "circle",
        "square",
        "triangle",
        "star",
        "heart",
        "ring",
        "moon",
        "fish",
    )
    """Shapes that objects may have."""
    colours: tuple[str, ...] = tuple(COLOURS)
    """Colour words that objects may have."""
    textures: tuple[str, ...] = TEXTURES
    """Surface patterns that objects may have; "plain" is never named in a caption."""
    backgrounds: tuple[str, ...] = (
        "sand", "grass", "hills", "clouds", "night sky", "sea", "snow", "wood", "bricks", "pebbles",
    )  # fmt: skip
    """Backgrounds that scenes may have."""

    def __post_init__(self) -> None:
        if not 64 <= self.image_size <= 1024:
            raise ConfigError(f"image_size must be between 64 and 1024, not {self.image_size}")
        if not 1 <= self.min_objects <= self.max_objects <= 4:
            raise ConfigError(
                "objects per scene must satisfy 1 <= min_objects <= max_objects <= 4, not "
                f"min_objects={self.min_objects}, max_objects={self.max_objects}"
            )
        _check_words("kinds", self.kinds, _OUTLINES)
        _check_words("colours", self.colours, COLOURS)
        _check_words("textures", self.textures, TEXTURES)
        _check_words("backgrounds", self.backgrounds, _BACKGROUNDS)
        if len(self.kinds) * len(self.colours) < self.max_objects:
            raise ConfigError(
                f"{len(self.kinds)} kinds x {len(self.colours)} colours cannot make "
                f"{self.max_objects} objects of different names; allow more or lower max_objects"
            )


def _check_words(
    field: str, words: Sequence[str], known: Mapping[str, Any] | Sequence[str]
) -> None:
    unknown = [word for word in words if word not in known]
    if unknown or not words or len(set(words)) != len(words):
        raise ConfigError(f"{field} must be different words out of {sorted(known)}, not {words}")


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object of a scene."""

    kind: str
    """Shape word, for example "circle"."""
    colour: str
    """Colour word, for example "red"."""
    texture: str
    """Texture word, for example "striped"; "plain" for none."""
    size: str
    """"small" or "large"."""
    place: str
    """Place word of the object's middle, for example "top left"."""
    mask: np.ndarray
    """Pixels in which the object is seen: bool, (height, width)."""

    @property
    def name(self) -> str:
        """Colour and kind, for example "red circle"; no other object of the scene has it."""
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture, what is in it, and captions that are true of it."""

    image: Image.Image
    """The picture, RGB."""
    objects: tuple[SceneObject, ...]
    """Objects in drawing order: a later one hides an earlier one where they overlap."""
    background: str
    """Background word, for example "night sky"."""
    captions: tuple[str, ...]
    """Five different captions, lower case, without a final stop."""


def render_scene(seed: int, config: SceneConfig | None = None) -> Scene:
    """Draws the scene that belongs to `seed` (any non-negative integer)."""
    config = config or SceneConfig()
    rng = np.random.default_rng(seed)
    background, plans, captions = _plan_scene(rng, config)
    canvas = _BACKGROUNDS[background](rng, config.image_size)
    covers = [_draw_object(canvas, plan, rng) for plan in plans]
    objects = tuple(
        SceneObject(plan.kind, plan.colour, plan.texture, plan.size, plan.place(config), mask)
        for plan, mask in zip(plans, _visible(covers), strict=True)
    )
    return Scene(canvas, objects, background, captions)


def scenes(count: int, seed: int, config: SceneConfig | None = None) -> Iterator[Scene]:
    """Yields `count` scenes; scene i of a seed is the same whatever the count."""
    for index in range(count):
        yield render_scene(_scene_seed(seed, index), config)


def scene_captions(
    count: int, seed: int, config: SceneConfig | None = None
) -> Iterator[tuple[str, ...]]:
    """Yields the captions of `scenes(count, seed, config)` without drawing the pictures."""
    config = config or SceneConfig()
    for index in range(count):
        yield _plan_scene(np.random.default_rng(_scene_seed(seed, index)), config)[2]


def _scene_seed(seed: int, index: int) -> int:
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])


# Layout


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """An object before it is drawn: its words, its middle and radius in pixels."""

    kind: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    radius: float

    def place(self, config: SceneConfig) -> str:
        third = config.image_size / 3
        return PLACES[min(int(self.y / third), 2)][min(int(self.x / third), 2)]


def _plan_scene(
    rng: np.random.Generator, config: SceneConfig
) -> tuple[str, list[_Plan], tuple[str, ...]]:
    background = str(rng.choice(config.backgrounds))
    plans = _plan_objects(rng, config)
    return background, plans, _captions(rng, plans, config, background)


def _plan_objects(rng: np.random.Generator, config: SceneConfig) -> list[_Plan]:
    """Chooses objects of different names and free places for them."""
    count = int(rng.integers(config.min_objects, config.max_objects + 1))
    names = rng.choice(len(config.kinds) * len(config.colours), size=count, replace=False)
    plans: list[_Plan] = []
    for name in names.tolist():
        size = "large" if rng.random() < 0.55 else "small"
        spot = _free_spot(rng, config, size, plans)
        if spot is None:
            size = "small"
            spot = _free_spot(rng, config, size, plans)
        if spot is None:  # two large objects and a small one can fill the image
            return _plan_objects(rng, config)
        plans.append(
            _Plan(
                kind=config.kinds[name // len(config.colours)],
                colour=config.colours[name % len(config.colours)],
                texture=str(rng.choice(config.textures)),
                size=size,
                x=spot[0],
                y=spot[1],
                radius=spot[2],
            )
        )
    return plans


def _free_spot(
    rng: np.random.Generator, config: SceneConfig, size: str, plans: Sequence[_Plan]
) -> tuple[float, float, float] | None:
    side = config.image_size
    for _ in range(40):
        radius = rng.uniform(*SIZES[size]) * side
        edge = radius * 1.08 + _MARGIN * side
        x, y = rng.uniform(edge, side - edge, 2)
        reach = 1 - _MOST_OVERLAP
        if all(math.hypot(x - p.x, y - p.y) > (radius + p.radius) * reach for p in plans):
            return float(x), float(y), float(radius)
    return None


def _visible(covers: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Takes from each object's pixels those that a later object covers."""
    masks, hidden = [], np.zeros_like(covers[0])
    for cover in reversed(covers):
        masks.append(cover & ~hidden)
        hidden = hidden | cover
    return masks[::-1]


# Objects. Outlines are polygons in the square [-1, 1]^2, y downwards; a second polygon is a hole.

_Outline = tuple[np.ndarray, ...]


def _arc(x: float, y: float, rx: float, ry: float, start: float, stop: float, n: int) -> np.ndarray:
    angle = np.radians(np.linspace(start, stop, n))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _circle() -> _Outline:
    return (_arc(0.0, 0.0, 0.97, 0.97, 0.0, 352.0, 45),)


def _square() -> _Outline:
    return (np.array([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]),)


def _triangle() -> _Outline:
    return (np.array([(0, -0.92), (0.96, 0.74), (-0.96, 0.74)]),)


def _star() -> _Outline:
    angle = np.radians(np.arange(10) * 36 - 90)
    radius = np.where(np.arange(10) % 2 == 0, 1.04, 0.5)
    return (np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1),)


def _heart() -> _Outline:
    t = np.linspace(0, 2 * np.pi, 44, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return (np.stack([x / 16.5, (y - 2.5) / 15.5], axis=1),)


def _ring() -> _Outline:
    return _arc(0.0, 0.0, 1.0, 1.0, 0.0, 352.0, 45), _arc(0.0, 0.0, 0.47, 0.47, 0.0, 348.0, 30)


def _moon() -> _Outline:
    outer = _arc(0.22, 0.0, 1.0, 1.0, 52.0, 308.0, 36)
    inner = _arc(0.72, 0.0, 0.8, 0.8, 278.0, 82.0, 28)
    return (np.concatenate([outer, inner]),)


def _fish() -> _Outline:
    body = _arc(-0.24, 0.0, 0.76, 0.6, 24.0, 336.0, 40)
    return (np.concatenate([body, [(0.98, -0.56), (0.8, 0), (0.98, 0.56)]]),)


_OUTLINES: dict[str, Callable[[], _Outline]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "ring": _ring,
    "moon": _moon,
    "fish": _fish,
}


def _draw_object(canvas: Image.Image, plan: _Plan, rng: np.random.Generator) -> np.ndarray:
    """Draws one object with its soft shadow; returns the pixels that it covers."""
    turn = math.radians(float(rng.uniform(-16, 16)))
    flip = -1.0 if rng.random() < 0.5 else 1.0
    half = math.ceil(plan.radius * 1.1) + 5
    left, top = int(plan.x) - half, int(plan.y) - half
    centre = (plan.x - left, plan.y - top)
    body, inside = _shape_masks(plan, turn, flip, centre, 2 * half)

    blur = ImageFilter.GaussianBlur(max(1.5, plan.radius * 0.07))
    shadow = body.point(lambda value: value * 0.42).filter(blur)
    drop = max(1, round(plan.radius * 0.07))
    canvas.paste((24, 22, 44), (left + drop // 2 + 1, top + drop + 1), shadow)
    canvas.paste(_surface(plan, turn, centre, inside, rng), (left, top), body)
    if plan.kind == "fish":
        _draw_eye(canvas, plan, turn, flip)

    cover = np.zeros((canvas.height, canvas.width), dtype=bool)
    drawn = np.asarray(body) > 127
    rows = slice(max(top, 0), min(top + 2 * half, canvas.height))
    columns = slice(max(left, 0), min(left + 2 * half, canvas.width))
    cover[rows, columns] = drawn[
        rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]
    return cover


def _shape_masks(
    plan: _Plan, turn: float, flip: float, centre: tuple[float, float], side: int
) -> tuple[Image.Image, Image.Image]:
    """Coverage of the whole object and of its inside without the rim, antialiased."""
    scale = _SUPERSAMPLING
    body = Image.new("L", (side * scale, side * scale))
    draw = ImageDraw.Draw(body)
    rim = max(1.5, plan.radius * 0.065) * scale
    cos, sin = math.cos(turn) * plan.radius, math.sin(turn) * plan.radius
    edges = []
    for level, (outline, corners) in zip((255, 0), _outline(plan.kind), strict=False):
        x, y = outline[:, 0] * flip, outline[:, 1]
        points = np.stack([x * cos - y * sin + centre[0], x * sin + y * cos + centre[1]], axis=1)
        path = [tuple(point) for point in (points * scale).tolist()]
        draw.polygon(path, fill=level)
        edges.append((path, corners))
    inside = body.copy()
    for image, level in ((body, 255), (inside, 0)):
        pen = ImageDraw.Draw(image)
        for path, corners in edges:
            pen.line([*path, path[0]], fill=level, width=round(rim))
            for x, y in (path[index] for index in corners):
                pen.ellipse((x - rim / 2, y - rim / 2, x + rim / 2, y + rim / 2), fill=level)
    return body.reduce(scale), inside.reduce(scale)


@lru_cache(maxsize=len(_OUTLINES))
def _outline(kind: str) -> tuple[tuple[np.ndarray, list[int]], ...]:
    """The polygons of a kind, each with the indices of its sharp corners."""
    return tuple((polygon, _corners(polygon)) for polygon in _OUTLINES[kind]())


def _corners(polygon: np.ndarray) -> list[int]:
    after = np.roll(polygon, -1, axis=0) - polygon
    before = polygon - np.roll(polygon, 1, axis=0)
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    angle = np.abs(np.arctan2(cross, (before * after).sum(axis=1)))
    return np.flatnonzero(angle > 0.3).tolist()


def _surface(
    plan: _Plan,
    turn: float,
    centre: tuple[float, float],
    inside: Image.Image,
    rng: np.random.Generator,
) -> Image.Image:
    """The object's colours: fill with pattern and light from the top left, darker rim."""
    fill = np.asarray(COLOURS[plan.colour], dtype=np.float32) + rng.uniform(-7, 7, 3)
    white = plan.colour == "white"
    second = fill * 0.8 if white else fill + (255 - fill) * _TINT.get(plan.colour, 0.5)
    rim = np.array([118, 122, 138]) if white else fill * 0.6
    line = np.arange(inside.width, dtype=np.float32) + 0.5
    x, y = line[None, :] - centre[0], line[:, None] - centre[1]
    pattern = _pattern(plan, turn, x, y)[..., None]
    light = 1 - 0.11 * np.clip((x + 1.6 * y) / (1.9 * plan.radius), -1, 1)[..., None]
    share = (np.asarray(inside, dtype=np.float32) / 255)[..., None]
    colour = (fill + (second - fill) * pattern) * light
    colour = rim + (colour - rim) * share
    return Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8))


_TINT = {"yellow": 0.66, "pink": 0.62, "orange": 0.5, "green": 0.5, "red": 0.5}
"""How far towards white the second colour of a pattern lies."""


def _pattern(plan: _Plan, turn: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Share of the second colour at each pixel, with edges one pixel soft."""
    if plan.texture == "plain":
        return np.zeros((1, 1), dtype=np.float32)
    angle = turn + (math.pi / 4 if plan.texture == "striped" else 0.0)
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    pitch = max(6.0, plan.radius * 0.42)
    if plan.texture == "striped":
        return np.clip(_to_nearest(u, pitch) - pitch / 4 + 0.5, 0, 1)
    if plan.texture == "dotted":
        row = np.round(v / pitch)
        near = np.hypot(_to_nearest(u + row * pitch / 2, pitch), v - row * pitch)
        return np.clip(pitch * 0.3 - near + 0.5, 0, 1)
    a = np.clip(_to_nearest(u, pitch * 1.2) - pitch * 0.3 + 0.5, 0, 1)
    b = np.clip(_to_nearest(v, pitch * 1.2) - pitch * 0.3 + 0.5, 0, 1)
    return a + b - 2 * a * b


def _to_nearest(value: np.ndarray, pitch: float) -> np.ndarray:
    return np.abs(value - pitch * np.round(value / pitch))


def _draw_eye(canvas: Image.Image, plan: _Plan, turn: float, flip: float) -> None:
    x, y = -0.6 * flip * plan.radius, -0.14 * plan.radius
    middle = (
        plan.x + x * math.cos(turn) - y * math.sin(turn),
        plan.y + x * math.sin(turn) + y * math.cos(turn),
    )
    radius = max(1.4, plan.radius * 0.12)
    _paste_disc(canvas, middle, radius, (255, 255, 255))
    _paste_disc(canvas, middle, radius * 0.6, (30, 28, 48))


def _paste_disc(
    canvas: Image.Image, middle: tuple[float, float], radius: float, colour: tuple[int, int, int]
) -> None:
    half = math.ceil(radius) + 1
    left, top = int(middle[0]) - half, int(middle[1]) - half
    y, x = np.ogrid[: 2 * half + 1, : 2 * half + 1]
    distance = np.hypot(x + 0.5 - middle[0] + left, y + 0.5 - middle[1] + top)
    cover = np.clip(radius - distance + 0.5, 0, 1) * 255
    canvas.paste(colour, (left, top), Image.fromarray(cover.astype(np.uint8)))


# Backgrounds. Muted and light (the night apart), so that the objects stand out.


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


_BACKGROUNDS: dict[str, Callable[[np.random.Generator, int], Image.Image]] = {
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

_BACKGROUND_PHRASES = {
    "sand": ("on sand", "on the sand"),
    "grass": ("on grass", "in the grass"),
    "hills": ("in front of hills", "over the hills"),
    "clouds": ("among clouds", "in front of clouds"),
    "night sky": ("in the night sky", "against a night sky"),
    "sea": ("on the sea", "over the sea"),
    "snow": ("on snow", "in the snow"),
    "wood": ("on wood", "on a table of wood"),
    "bricks": ("on bricks", "on a wall of bricks"),
    "pebbles": ("on pebbles", "among pebbles"),
}

# Captions


def _captions(
    rng: np.random.Generator, plans: Sequence[_Plan], config: SceneConfig, background: str
) -> tuple[str, ...]:
    """Five different captions: of one object, of two and of all, in random order."""
    forms = [_one, _one_placed, _two, _all, _one if rng.random() < 0.5 else _all]
    found: list[str] = []
    for form in (forms[index] for index in rng.permutation(CAPTIONS_PER_SCENE)):
        caption = form(rng, plans, config, background)
        while caption in found:
            caption = _OPENINGS[rng.integers(len(_OPENINGS))] + form(rng, plans, config, background)
        found.append(caption)
    return tuple(found)


_OPENINGS = ("", "a picture of ", "there is ", "we see ")


def _noun(rng: np.random.Generator, plan: _Plan, detail: float = 0.45) -> str:
    """One object with its article, size and texture each named with probability `detail`."""
    words = [plan.colour]
    if plan.texture != "plain" and rng.random() < detail + 0.1:
        words.append(plan.texture)
    if rng.random() < detail:
        words.insert(0, str(rng.choice(SIZE_WORDS[plan.size])))
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words, plan.kind])


def _where(place: str) -> str:
    if place == "centre":
        return "in the centre"
    if place in ("left", "right"):
        return f"on the {place}"
    return f"at the {place}"


def _setting(rng: np.random.Generator, background: str) -> str:
    return str(rng.choice(_BACKGROUND_PHRASES[background]))


def _pick(rng: np.random.Generator, plans: Sequence[_Plan]) -> _Plan:
    """Draws an object, a large one twice as often: people name what they see first."""
    weights = np.array([2.0 if plan.size == "large" else 1.0 for plan in plans])
    return plans[rng.choice(len(plans), p=weights / weights.sum())]


def _one(rng, plans, config, background) -> str:
    return _noun(rng, _pick(rng, plans), 0.5)


def _one_placed(rng, plans, config, background) -> str:
    plan = _pick(rng, plans)
    if rng.random() < 0.5:
        return f"{_noun(rng, plan)} {_where(plan.place(config))}"
    return f"{_noun(rng, plan)} {_setting(rng, background)}"


def _two(rng, plans, config, background) -> str:
    if len(plans) == 1:
        return (
            f"{_noun(rng, plans[0])} {_where(plans[0].place(config))} {_setting(rng, background)}"
        )
    first, second = (plans[index] for index in rng.permutation(len(plans))[:2])
    caption = (
        f"{_noun(rng, first, 0.35)} {_relation(rng, first, second)} {_noun(rng, second, 0.35)}"
    )
    return f"{caption} {_setting(rng, background)}" if rng.random() < 0.35 else caption


def _relation(rng: np.random.Generator, first: _Plan, second: _Plan) -> str:
    """A word between two objects that is true of their places."""
    dx, dy = second.x - first.x, second.y - first.y
    gap = math.hypot(dx, dy) - first.radius - second.radius
    choices = ["and"]
    if abs(dy) > 1.5 * abs(dx):
        choices.append("above" if dy > 0 else "below")
    elif abs(dx) > 1.5 * abs(dy):
        choices.append("left of" if dx > 0 else "right of")
    if gap < 0.6 * max(first.radius, second.radius):
        choices.append("next to")
    return str(rng.choice(choices))


def _all(rng, plans, config, background) -> str:
    detail = 0.45 if len(plans) < 3 else 0.2
    nouns = [_noun(rng, plans[index], detail) for index in rng.permutation(len(plans))]
    listed = nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"
    return f"{listed} {_setting(rng, background)}" if rng.random() < 0.6 else listed


# Shards


def write_scene_shards(
    folder: str | os.PathLike[str],
    count: int,
    seed: int,
    shard_size: int = 1000,
    config: SceneConfig | None = None,
) -> list[Path]:
    """Writes `count` scenes as webdataset shards the way img2dataset does.

    Each shard `00000.tar` holds, per scene, `<key>.jpg`, `<key>.txt` (the first caption) and
    `<key>.json` (all captions, the background, and the objects with run-length coded masks).
    `00000_stats.json` lies beside it. A file appears under its name only when it is complete, and
    the same arguments write the same bytes.

    Returns:
        The tar files in order.

    Raises:
        ConfigError: `count` or `shard_size` is out of range.
    """
    if count < 1 or not 1 <= shard_size <= 10_000:
        raise ConfigError(
            f"need count >= 1 and 1 <= shard_size <= 10000, not count={count}, "
            f"shard_size={shard_size}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard, start in enumerate(range(0, count, shard_size)):
        indices = range(start, min(start + shard_size, count))
        paths.append(_write_shard(folder, shard, indices, seed, config))
    return paths


def _write_shard(
    folder: Path, shard: int, indices: range, seed: int, config: SceneConfig | None
) -> Path:
    path = folder / f"{shard:05d}.tar"
    partial = path.with_name(path.name + ".tmp")
    with tarfile.open(partial, "w") as tar:
        for index in indices:
            key = f"{shard:05d}{index - indices.start:04d}"
            _add_scene(tar, key, render_scene(_scene_seed(seed, index), config))
    os.replace(partial, path)
    stats = {
        "count": len(indices),
        "successes": len(indices),
        "failed_to_download": 0,
        "failed_to_resize": 0,
    }
    path_of_stats = folder / f"{shard:05d}_stats.json"
    partial = path_of_stats.with_name(path_of_stats.name + ".tmp")
    partial.write_text(json.dumps(stats, indent=4))
    os.replace(partial, path_of_stats)
    return path


def _add_scene(tar: tarfile.TarFile, key: str, scene: Scene) -> None:
    jpeg = io.BytesIO()
    scene.image.save(jpeg, "JPEG", quality=95)
    record = {
        "key": key,
        "caption": scene.captions[0],
        "captions": list(scene.captions),
        "width": scene.image.width,
        "height": scene.image.height,
        "status": "success",
        "background": scene.background,
        "objects": [_object_record(item) for item in scene.objects],
    }
    members = (
        ("jpg", jpeg.getvalue()),
        ("txt", scene.captions[0].encode()),
        ("json", json.dumps(record).encode()),
    )
    for extension, data in members:
        member = tarfile.TarInfo(f"{key}.{extension}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


def _object_record(item: SceneObject) -> dict[str, Any]:
    words = {word: getattr(item, word) for word in _OBJECT_WORDS}
    return {**words, "mask": {"size": list(item.mask.shape), "counts": _run_lengths(item.mask)}}


_OBJECT_WORDS = ("kind", "colour", "texture", "size", "place")


def _run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of runs down the columns, a run of False first (uncompressed COCO form)."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths


def read_scene_objects(record: Mapping[str, Any]) -> tuple[SceneObject, ...]:
    """Reads the objects, masks included, of the JSON member of a scene.

    Raises:
        DataError: "objects" is not there, or an object lacks a word or has a malformed mask.
    """
    if not isinstance(record.get("objects"), list):
        raise DataError(
            f"scene {record.get('key')!r} has no list 'objects' (it has {sorted(record)}); "
            "only shards of write_scene_shards have one"
        )
    return tuple(_read_object(item, record.get("key")) for item in record["objects"])


def _read_object(item: Mapping[str, Any], key: Any) -> SceneObject:
    try:
        words = [str(item[word]) for word in _OBJECT_WORDS]
        height, width = item["mask"]["size"]
        counts = np.asarray(item["mask"]["counts"], dtype=np.int64)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"scene {key!r} has a malformed object: {error!r}") from error
    if counts.ndim != 1 or (counts < 0).any() or counts.sum() != height * width:
        raise DataError(
            f"scene {key!r}: the mask of a {words[1]} {words[0]} has runs of {counts.sum()} pixels "
            f"in all, not {height} x {width} = {height * width}"
        )
    flat = np.repeat(np.arange(counts.size) % 2 == 1, counts)
    return SceneObject(*words, mask=flat.reshape((height, width), order="F"))
