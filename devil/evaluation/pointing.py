"""The pointing game: does the maximum of a map for an object's name fall on the object?

Zhang et al., "Top-down Neural Attention by Excitation Backprop" (ECCV 2016), without their
tolerance around the object. Chance is the object's share of the picture.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from devil.errors import DataError
from devil.report.heatmap import place


class PointingScore(NamedTuple):
    """Share of maps whose maximum lies on the object, beside chance."""

    hits: float
    chance: float
    maps: int


def points_at(
    values: np.ndarray,
    region: tuple[float, float, float, float],
    mask: np.ndarray,
) -> bool:
    """Whether a map's maximum, brought to the picture's pixels bilinearly, lies on the object.

    Args:
        values: (rows, columns), the map.
        region: left, top, right, bottom of what the map covers, in pixels of the picture.
        mask: (height, width) bool, the object's pixels.
    """
    height, width = mask.shape
    placed = place(values, region, (width, height))
    left, top = placed.box[0], placed.box[1]
    row, column = np.unravel_index(int(np.argmax(placed.values)), placed.values.shape)
    return bool(mask[int(top) + row, int(left) + column])


def blend_neighbours(values: np.ndarray, weight: float) -> np.ndarray:
    """Mean of each location and its neighbours, with weight 1 : `weight` in each direction.

    A lone location that stands out is more often a misreading than an object, and the locations
    around an object's edge score as high as those on it.
    """
    for _ in range(2):
        padded = np.pad(values, ((1, 1), (0, 0)), mode="edge")
        values = ((values + weight * (padded[:-2] + padded[2:])) / (1 + 2 * weight)).T
    return values


def pointing_score(results: Iterable[tuple[bool, float]]) -> PointingScore:
    """Sum up (hit, object's share of the picture) over maps.

    Raises:
        DataError: there are none.
    """
    rows = list(results)
    if not rows:
        raise DataError("the pointing game was played on no maps; give pictures with objects.")
    hits, shares = zip(*rows, strict=True)
    return PointingScore(float(np.mean(hits)), float(np.mean(shares)), len(rows))
