"""What curves of insertion and deletion come to over all pictures: areas, intervals, differences.

The curves are measured by `perturbation_study`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from devil.evaluation.bootstrap import Interval, mean_interval
from devil.evaluation.perturbation import Curve, area_under, curve_positions
from devil.evaluation.random_control import RANDOM_BACKBONE

SHUFFLED, UNTRAINED = "DeViL, another picture", f"DeViL, {RANDOM_BACKBONE}"
RANDOM, CENTRE = "random", "centre"


class PictureCurves(NamedTuple):
    """What was measured on one picture."""

    key: str
    label: int
    """Index of the class predicted on the clean picture."""
    words: str
    """The query of the first setting."""
    curves: dict[Curve, dict[str, list[float]]]
    """By measure and method: the class's probability at each point."""


class MethodScores(NamedTuple):
    """What was measured of one method, over all pictures."""

    areas: list[float]
    """Area under each picture's curve."""
    area: Interval
    curve: list[float]
    """Mean over pictures at each point."""


def study_scores(
    results: Sequence[PictureCurves], pixels: int, steps: int, seed: int = 0
) -> dict[Curve, dict[str, MethodScores]]:
    """Areas with bootstrap intervals over pictures, and mean curves.

    Args:
        results: of all pictures.
        pixels: of the classifier's input.
        steps: parts in which they were replaced.
        seed: of the resampling.

    Raises:
        DataError: there are no results.
    """
    positions = curve_positions(steps, pixels)
    found: dict[Curve, dict[str, MethodScores]] = {}
    for curve in results[0].curves if results else ():
        found[curve] = {}
        for method in results[0].curves[curve]:
            points = torch.tensor([r.curves[curve][method] for r in results], dtype=torch.float64)
            areas = area_under(points, positions).tolist()
            found[curve][method] = MethodScores(
                areas, mean_interval(areas, seed=seed), points.mean(dim=0).tolist()
            )
    return found


def paired_differences(
    scores: Mapping[str, MethodScores], first: str, seed: int = 0
) -> dict[str, Interval]:
    """`first` minus each other method, picture by picture, under the same resamples."""
    return {
        method: mean_interval(
            [a - b for a, b in zip(scores[first].areas, other.areas, strict=True)], seed=seed
        )
        for method, other in scores.items()
        if method != first
    }


def is_control(method: str) -> bool:
    """Whether a method knows nothing of the picture that it is measured on."""
    return method in (SHUFFLED, UNTRAINED, RANDOM, CENTRE)
