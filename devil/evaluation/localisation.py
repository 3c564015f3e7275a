"""Do maps for an object's name lie on the object? Photos with instance masks, rivals and controls.

For each photo and each category in it, the union of the category's masks is compared with a map
for the category's name, inside the part of the photo that the backbone sees:

- pointing game (Zhang et al., arXiv 1608.00507, without a tolerance): is the map's maximum on the
  object; chance is the object's share of that part;
- average precision over pixels, of each map alone and then averaged (Choe et al., arXiv 2001.07437,
  pool the pixels of all photos instead); chance is again the object's share;
- intersection over union with the pixels of the map's highest values: those that cover
  `FIXED_AREA` of the part, and the best share out of `AREAS` for the whole data set, which is
  chosen on the very same maps and hence flatters every method alike. Chance is what maps score
  that know nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from devil.errors import DataError
from devil.evaluation.bootstrap import Interval, mean_interval
from devil.evaluation.pointing import peak_share
from devil.report.heatmap import place

AREAS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Shares of the seen part that a map's highest values may cover."""
FIXED_AREA = 0.2
"""The share that is not chosen by its result."""

Region = tuple[float, float, float, float]


class MapScore(NamedTuple):
    """One map against one mask."""

    hit: float
    """The map's maximum is on the object: 1, 0, or the share of several highest pixels."""
    precision: float
    """Average precision over pixels."""
    share: float
    """The object's share of the pixels: chance of the two above."""
    overlaps: tuple[float, ...]
    """Intersection over union for each of `AREAS`."""


class MapResult(NamedTuple):
    """A score and what it is of."""

    photo: str
    category: str
    method: str
    score: MapScore


def seen_part(region: Region, mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask whose centres lie in a region."""
    height, width = mask.shape
    left, top, right, bottom = place(np.zeros((1, 1)), region, (width, height)).box
    return mask[top:bottom, left:right]


def map_score(values: np.ndarray, region: Region, mask: np.ndarray) -> MapScore:
    """Score a map for an object.

    Args:
        values: (rows, columns), the map; brought to the picture's pixels bilinearly.
        region: left, top, right, bottom of what the map covers, in pixels of the picture.
        mask: (height, width) bool, the object's pixels.

    Raises:
        DataError: no pixel of the object lies in the region.
    """
    from sklearn.metrics import average_precision_score  # its import draws random numbers

    height, width = mask.shape
    truth = seen_part(region, mask).ravel()
    if not truth.any():
        raise DataError(f"the object has no pixel in the region {region}; leave it out.")
    pixels = place(values, region, (width, height)).values.ravel()
    return MapScore(
        hit=peak_share(pixels, truth),
        precision=float(average_precision_score(truth, pixels)),
        share=float(truth.mean()),
        overlaps=tuple(overlaps(pixels, truth)),
    )


def overlaps(pixels: np.ndarray, truth: np.ndarray) -> list[float]:
    """Intersection over union for each of `AREAS`.

    Pixels as high as the last one chosen are chosen, too; pixels at the map's minimum never are,
    so that a map that says nothing chooses nothing.
    """
    ordered, low, result = np.sort(pixels)[::-1], pixels.min(), []
    for area in AREAS:
        threshold = ordered[max(1, round(area * len(pixels))) - 1]
        chosen = (pixels >= threshold) & (pixels > low)
        result.append(float((chosen & truth).sum() / (chosen | truth).sum()))
    return result


@dataclass(frozen=True, kw_only=True)
class LocalisationScore:
    """Means over maps, with bootstrap intervals over photos."""

    maps: int
    photos: int
    categories: int
    pointing: Interval
    precision: Interval
    chance: float
    """Mean share of the object: chance of pointing and precision."""
    overlap: Interval
    """Intersection over union at `FIXED_AREA`."""
    best_overlap: float
    """The highest mean intersection over union among `AREAS`."""
    best_area: float
    """Where it is reached."""
    category_pointing: float
    """Mean over categories of their means."""
    category_precision: float
    category_chance: float


def localisation_scores(
    results: Iterable[MapResult], *, seed: int = 0, resamples: int = 1000
) -> dict[str, LocalisationScore]:
    """Sum up results by method, in the order in which methods first come.

    Args:
        results: in any order; its order does not matter but for that of the methods.
        seed, resamples: of the bootstrap.
    """
    by_method: dict[str, list[MapResult]] = {}
    for result in results:
        by_method.setdefault(result.method, []).append(result)
    return {
        method: _score(sorted(rows, key=lambda r: r[:2]), seed, resamples)
        for method, rows in by_method.items()
    }


def localisation_gains(
    results: Iterable[MapResult],
    method: str,
    rivals: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, dict[str, Interval]]:
    """What a method scores above rivals on the maps that both have: pointing and precision.

    Differences of the same photo and category, so that what makes a photo hard for both is no
    noise; intervals over photos. Rivals without a common map are left out.
    """
    by_method: dict[str, dict[tuple[str, str], MapScore]] = {}
    for row in sorted(results, key=lambda r: r[:2]):
        if row.method == method or row.method in rivals:
            by_method.setdefault(row.method, {})[row.photo, row.category] = row.score
    own = by_method.pop(method, {})
    found = {}
    for rival in filter(by_method.__contains__, rivals):
        theirs = by_method[rival]
        pairs = [(own[key], score, key[0]) for key, score in theirs.items() if key in own]
        if pairs:
            photos = [photo for *_, photo in pairs]
            gains = {
                "pointing": [mine.hit - other.hit for mine, other, _ in pairs],
                "precision": [mine.precision - other.precision for mine, other, _ in pairs],
            }
            found[rival] = {
                name: mean_interval(values, photos, seed=seed, resamples=resamples)
                for name, values in gains.items()
            }
    return found


def _score(rows: Sequence[MapResult], seed: int, resamples: int) -> LocalisationScore:
    photos = [row.photo for row in rows]
    areas = np.array([row.score.overlaps for row in rows]).mean(axis=0)
    best = int(areas.argmax())

    def interval(values: Iterable[float]) -> Interval:
        return mean_interval(list(values), photos, seed=seed, resamples=resamples)

    by_category: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        score = row.score
        by_category.setdefault(row.category, []).append((score.hit, score.precision, score.share))
    means = np.mean([np.mean(values, axis=0) for values in by_category.values()], axis=0)
    fixed = AREAS.index(FIXED_AREA)
    return LocalisationScore(
        maps=len(rows),
        photos=len(set(photos)),
        categories=len(by_category),
        pointing=interval(row.score.hit for row in rows),
        precision=interval(row.score.precision for row in rows),
        chance=float(np.mean([row.score.share for row in rows])),
        overlap=interval(row.score.overlaps[fixed] for row in rows),
        best_overlap=float(areas[best]),
        best_area=AREAS[best],
        category_pointing=float(means[0]),
        category_precision=float(means[1]),
        category_chance=float(means[2]),
    )
