"""Saliency maps as colours: normalised per map, upsampled bilinearly, laid over the picture.

A map is numbers on a layer's grid, in nats; the grid covers `Explanation.region` of the picture.
Upsampling follows torch's `interpolate(mode="bilinear", align_corners=False)`: a value sits at the
centre of its cell and the outer half cells repeat the edge. The page does the same in JavaScript
(`templates/geometry.js`) from the same colour table. Layout is left to `figure` and `page`.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

FLAT_TOLERANCE = 1e-6
"""A map whose range is below this share of its largest value is rounding noise, hence flat."""


class Scale(NamedTuple):
    """What the two ends of the colour table stand for, in nats."""

    low: float
    high: float
    flat: bool
    """All values are the same up to float32 rounding: there is nothing to tell apart."""

    @property
    def label(self) -> str:
        """The range as it is printed next to the map, fine enough to show its two ends apart."""
        if self.flat:
            return f"flat at {nats(self.low)}"
        decimals = 2 if self.high - self.low >= 0.1 else 4
        return f"{nats(self.low, decimals)} to {nats(self.high, decimals)}"


def nats(value: float, decimals: int = 2) -> str:
    """A number for people, with a true minus sign."""
    return f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def scale_of(values: np.ndarray) -> Scale:
    """The range of a map, and whether it is flat."""
    low, high = float(values.min()), float(values.max())
    return Scale(low, high, high - low <= FLAT_TOLERANCE * max(abs(low), abs(high)))


def normalise(values: np.ndarray) -> np.ndarray:
    """Bring a map to [0, 1]; a flat map becomes 0 everywhere, and so never looks salient."""
    scale = scale_of(values)
    if scale.flat:
        return np.zeros(values.shape, np.float64)
    return (values.astype(np.float64) - scale.low) / (scale.high - scale.low)


def upsample(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resample a (rows, columns) map to (height, width), bilinear, `align_corners=False`."""
    rows, columns = values.shape
    y = (np.arange(height) + 0.5) * rows / height - 0.5
    x = (np.arange(width) + 0.5) * columns / width - 0.5
    return sample(values, y, x)


def sample(values: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Read a map at grid coordinates, where cell centres are whole numbers: (len(y), len(x))."""
    rows, columns = values.shape
    y, x = np.clip(y, 0, rows - 1), np.clip(x, 0, columns - 1)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    bottom, right = np.minimum(top + 1, rows - 1), np.minimum(left + 1, columns - 1)
    down, along = (y - top)[:, None], (x - left)[None, :]
    values = values.astype(np.float64)
    upper = values[np.ix_(top, left)] * (1 - along) + values[np.ix_(top, right)] * along
    lower = values[np.ix_(bottom, left)] * (1 - along) + values[np.ix_(bottom, right)] * along
    return upper * (1 - down) + lower * down


class Placed(NamedTuple):
    """A map at the resolution of a picture."""

    box: tuple[int, int, int, int]
    """Left, top, right, bottom: the whole pixels whose centres lie in the region."""
    values: np.ndarray
    """(bottom - top, right - left), in the map's unit."""


def place(
    values: np.ndarray, region: tuple[float, float, float, float], size: tuple[int, int]
) -> Placed:
    """Upsample a map to the pixels of a picture that its region covers.

    Args:
        values: (rows, columns).
        region: left, top, right, bottom that the grid covers, in pixels; may be fractional and may
            reach outside the picture (a transform that pads), where nothing is drawn.
        size: width and height of the picture.
    """
    rows, columns = values.shape
    left, top, right, bottom = region
    box = (
        max(0, math.ceil(left - 0.5)),
        max(0, math.ceil(top - 0.5)),
        min(size[0], math.ceil(right - 0.5)),
        min(size[1], math.ceil(bottom - 0.5)),
    )
    x = (np.arange(box[0], box[2]) + 0.5 - left) * columns / (right - left) - 0.5
    y = (np.arange(box[1], box[3]) + 0.5 - top) * rows / (bottom - top) - 0.5
    return Placed(box, sample(values, y, x))


@cache
def colour_table() -> np.ndarray:
    """256 colours as uint8 (256, 3), from dark indigo through rose to pale yellow.

    Drawn in OKLCH (Björn Ottosson, 2020) so that lightness rises in equal steps: equal differences
    in a map look equally large, also in greyscale and to most colour-blind readers.
    """
    t = np.linspace(0, 1, 256)
    lightness = 0.20 + 0.76 * t
    hue = np.radians(285 + 178 * t**0.9)
    chroma = 0.04 + 0.14 * np.sin(np.pi * np.clip(0.08 + 0.84 * t, 0, 1)) ** 0.9
    rgb = _oklch_to_srgb(lightness, chroma, hue)
    table = np.round(rgb * 255).astype(np.uint8)
    table.flags.writeable = False
    return table


def _oklch_to_srgb(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """Convert to sRGB in [0, 1]; colours out of gamut lose chroma, never lightness."""
    fits, breaks = np.zeros_like(chroma), np.ones_like(chroma)
    for _ in range(30):  # bisection for the largest share of the chroma that can be shown
        share = (fits + breaks) / 2
        rgb = _oklab_to_linear(
            lightness, share * chroma * np.cos(hue), share * chroma * np.sin(hue)
        )
        inside = ((rgb >= 0) & (rgb <= 1)).all(axis=1)
        fits, breaks = np.where(inside, share, fits), np.where(inside, breaks, share)
    chroma = fits * chroma
    rgb = np.clip(_oklab_to_linear(lightness, chroma * np.cos(hue), chroma * np.sin(hue)), 0, 1)
    return np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)


def _oklab_to_linear(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return np.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        axis=1,
    )


def colours(normalised: np.ndarray) -> np.ndarray:
    """Colours of values in [0, 1]: uint8, one axis of 3 appended."""
    index = np.clip(np.round(np.asarray(normalised) * 255), 0, 255).astype(int)
    return colour_table()[index]


def overlay(
    image: Image.Image,
    values: np.ndarray,
    region: tuple[float, float, float, float],
    *,
    opacity: float = 0.6,
) -> Image.Image:
    """Lay a map over a greyscale copy of a picture; outside the region the picture is left alone.

    Args:
        image: the picture that `region` refers to.
        values: (rows, columns), any unit; normalised to its own range.
        region: left, top, right, bottom, in pixels.
        opacity: of the colours, 0 to 1.
    """
    box, placed = place(normalise(values), region, image.size)
    pixels = np.asarray(image.convert("RGB"), np.float64).copy()
    inside = np.s_[box[1] : box[3], box[0] : box[2]]
    grey = pixels[inside] @ np.array([0.299, 0.587, 0.114])
    pixels[inside] = (1 - opacity) * grey[..., None] + opacity * colours(placed)
    return Image.fromarray(np.round(pixels).astype(np.uint8))
