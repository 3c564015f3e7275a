"""The pointing game: does the maximum of a map for an object's name fall on the object?

Zhang et al., "Top-down Neural Attention by Excitation Backprop" (ECCV 2016), without their
tolerance around the object. Chance is the object's share of the picture. Where several pixels are
highest (half a location's cell at the edge of a map, all of a flat one), each counts for its share,
as if one of them were drawn: no corner is favoured, and a flat map scores as chance.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from devil.errors import DataError
from devil.report.heatmap import place

TIED = 1e-6
"""Pixels this near the highest, in units of the map's range, are as high: interpolation rounds."""


class PointingScore(NamedTuple):
    """Share of maps whose maximum lies on the object, beside chance."""

    hits: float
    chance: float
    maps: int


def points_at(
    values: np.ndarray,
    region: tuple[float, float, float, float],
    mask: np.ndarray,
) -> float:
    """Whether a map's maximum, brought to the picture's pixels bilinearly, lies on the object.

    1 or 0; of several highest pixels, the share that does.

    Args:
        values: (rows, columns), the map.
        region: left, top, right, bottom of what the map covers, in pixels of the picture.
        mask: (height, width) bool, the object's pixels.
    """
    height, width = mask.shape
    placed = place(values, region, (width, height))
    left, top, right, bottom = placed.box
    return peak_share(placed.values, mask[top:bottom, left:right])


def peak_share(pixels: np.ndarray, truth: np.ndarray) -> float:
    """Share of the highest pixels that lie on the object; both arrays of one shape."""
    highest = pixels.max()
    return float(truth[pixels >= highest - TIED * (highest - pixels.min())].mean())


def blend_neighbours(values: np.ndarray, weight: float) -> np.ndarray:
    """Mean of each location and its neighbours, with weight 1 : `weight` in each direction.

    A lone location that stands out is more often a misreading than an object, and the locations
    around an object's edge score as high as those on it.
    """
    for _ in range(2):
        padded = np.pad(values, ((1, 1), (0, 0)), mode="edge")
        values = ((values + weight * (padded[:-2] + padded[2:])) / (1 + 2 * weight)).T
    return values


def pointing_score(results: Iterable[tuple[float, float]]) -> PointingScore:
    """Sum up (share of the peak on the object, object's share of the picture) over maps.

    Raises:
        DataError: there are none.
    """
    rows = list(results)
    if not rows:
        raise DataError("the pointing game was played on no maps; give pictures with objects.")
    hits, shares = zip(*rows, strict=True)
    return PointingScore(float(np.mean(hits)), float(np.mean(shares)), len(rows))
