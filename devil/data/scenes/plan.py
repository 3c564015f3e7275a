"""The words of scenes, and an object as it is planned: what drawing and captions both read."""

from dataclasses import dataclass

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
SIZES = {"small": (0.13, 0.155), "large": (0.21, 0.25)}
"""Size word to the range of radii, as shares of the image's side."""

SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
"""Size to the words that captions may use for it."""

PLACES = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)
"""Place words as rows and columns of thirds of the image."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An object before it is drawn: its words, its middle and radius in pixels."""

    kind: str
    colour: str
    texture: str
    size: str
    place: str
    x: float
    y: float
    radius: float
