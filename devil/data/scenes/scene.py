"""Plans and draws scenes: a few objects on a background, with pixel masks and captions.

A scene follows from one integer alone. Every object has a colour, a texture, a kind, a size and a
place; its mask holds the pixels that show it, later objects hiding earlier ones.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from devil.data.scenes.backgrounds import BACKGROUNDS
from devil.data.scenes.captions import make_captions
from devil.data.scenes.objects import OUTLINES, draw_object
from devil.data.scenes.plan import COLOURS, PLACES, SIZES, TEXTURES, Plan
from devil.errors import ConfigError

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
        _check_words("kinds", self.kinds, OUTLINES)
        _check_words("colours", self.colours, COLOURS)
        _check_words("textures", self.textures, TEXTURES)
        _check_words("backgrounds", self.backgrounds, BACKGROUNDS)
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
    canvas = BACKGROUNDS[background](rng, config.image_size)
    covers = [draw_object(canvas, plan, rng) for plan in plans]
    objects = tuple(
        SceneObject(plan.kind, plan.colour, plan.texture, plan.size, plan.place, mask)
        for plan, mask in zip(plans, _visible(covers), strict=True)
    )
    return Scene(canvas, objects, background, captions)


def scenes(count: int, seed: int, config: SceneConfig | None = None) -> Iterator[Scene]:
    """Yields `count` scenes; scene i of a seed is the same whatever the count."""
    for index in range(count):
        yield render_scene(scene_seed(seed, index), config)


def scene_captions(
    count: int, seed: int, config: SceneConfig | None = None
) -> Iterator[tuple[str, ...]]:
    """Yields the captions of `scenes(count, seed, config)` without drawing the pictures."""
    config = config or SceneConfig()
    for index in range(count):
        yield _plan_scene(np.random.default_rng(scene_seed(seed, index)), config)[2]


def scene_seed(seed: int, index: int) -> int:
    """The seed for `render_scene` of scene `index` of `scenes(count, seed)`."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])


# Layout


def _plan_scene(
    rng: np.random.Generator, config: SceneConfig
) -> tuple[str, list[Plan], tuple[str, ...]]:
    background = str(rng.choice(config.backgrounds))
    plans = _plan_objects(rng, config)
    return background, plans, make_captions(rng, plans, background)


def _plan_objects(rng: np.random.Generator, config: SceneConfig) -> list[Plan]:
    """Chooses objects of different names and free places for them."""
    count = int(rng.integers(config.min_objects, config.max_objects + 1))
    names = rng.choice(len(config.kinds) * len(config.colours), size=count, replace=False)
    plans: list[Plan] = []
    for name in names.tolist():
        size = "large" if rng.random() < 0.55 else "small"
        spot = _free_spot(rng, config, size, plans)
        if spot is None:
            size = "small"
            spot = _free_spot(rng, config, size, plans)
        if spot is None:  # two large objects and a small one can fill the image
            return _plan_objects(rng, config)
        plans.append(
            Plan(
                kind=config.kinds[name // len(config.colours)],
                colour=config.colours[name % len(config.colours)],
                texture=str(rng.choice(config.textures)),
                size=size,
                place=_place(config, *spot[:2]),
                x=spot[0],
                y=spot[1],
                radius=spot[2],
            )
        )
    return plans


def _free_spot(
    rng: np.random.Generator, config: SceneConfig, size: str, plans: Sequence[Plan]
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


def _place(config: SceneConfig, x: float, y: float) -> str:
    third = config.image_size / 3
    return PLACES[min(int(y / third), 2)][min(int(x / third), 2)]


def _visible(covers: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Takes from each object's pixels those that a later object covers."""
    masks, hidden = [], np.zeros_like(covers[0])
    for cover in reversed(covers):
        masks.append(cover & ~hidden)
        hidden = hidden | cover
    return masks[::-1]
