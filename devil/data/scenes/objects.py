"""Draws one object of a scene: its outline, its surface and its shadow; returns its pixels."""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from devil.data.scenes.plan import COLOURS, Plan

_SUPERSAMPLING = 4

# Outlines are polygons in the square [-1, 1]^2, y downwards; a second polygon is a hole.
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


OUTLINES: dict[str, Callable[[], _Outline]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "ring": _ring,
    "moon": _moon,
    "fish": _fish,
}
"""Shape word to the builder of its outline."""


def draw_object(canvas: Image.Image, plan: Plan, rng: np.random.Generator) -> np.ndarray:
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
    plan: Plan, turn: float, flip: float, centre: tuple[float, float], side: int
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


@lru_cache(maxsize=len(OUTLINES))
def _outline(kind: str) -> tuple[tuple[np.ndarray, list[int]], ...]:
    """The polygons of a kind, each with the indices of its sharp corners."""
    return tuple((polygon, _corners(polygon)) for polygon in OUTLINES[kind]())


def _corners(polygon: np.ndarray) -> list[int]:
    after = np.roll(polygon, -1, axis=0) - polygon
    before = polygon - np.roll(polygon, 1, axis=0)
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    angle = np.abs(np.arctan2(cross, (before * after).sum(axis=1)))
    return np.flatnonzero(angle > 0.3).tolist()


def _surface(
    plan: Plan,
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


def _pattern(plan: Plan, turn: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
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


def _draw_eye(canvas: Image.Image, plan: Plan, turn: float, flip: float) -> None:
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
