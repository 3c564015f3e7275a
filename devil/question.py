"""What is asked of a picture: layers, locations, words, and how maps are calibrated.

Plain data without torch. Whether a model can answer is checked in `devil.draft`.
"""

import math
from dataclasses import dataclass

from devil.errors import QueryError

MOST_WORDS = 1000
"""Likeliest words of a location, at most."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a picture; one question can be asked of many."""

    layers: tuple[str, ...] | None = None
    """Layer names, and `all` for all layers at once; None: each layer, then `all`."""
    queries: tuple[str, ...] = ()
    """Words or phrases; each gets a map per layer."""
    captions: bool = True
    """Write captions: of pooled layers, and of the locations that are asked for."""
    dense: bool | None = None
    """Ask for every location; None: unless `points` are given."""
    points: tuple[tuple[float, float], ...] = ()
    """Ask for the locations that cover these points: fractions of the picture's width, from the
    left, and height, from the top. A point that the layers do not see counts as the nearest one
    that they do."""
    words: int = 0
    """How many of the likeliest words are told of each location that is asked for."""
    calibration: str = "pmi"
    """See `devil.saliency.calibrate`. Words know `pmi`, and count as `none` otherwise."""
    prompt: str = ""
    """Text that queries and words are conditioned on, not scored."""
    smoothing: int = 1
    """Odd kernel of the average pooling before a location is read; 1 is none."""

    def __post_init__(self) -> None:
        for point in self.points:
            if len(point) != 2 or not all(math.isfinite(x) and 0 <= x <= 1 for x in point):
                raise QueryError(
                    f"point {tuple(point)} lies outside the picture; give fractions from 0 to 1 "
                    "of its width and height."
                )
        if not 0 <= self.words <= MOST_WORDS:
            raise QueryError(f"words is {self.words}; allowed: 0 to {MOST_WORDS:,}.")

    @property
    def everywhere(self) -> bool:
        """Whether every location is asked for."""
        return not self.points if self.dense is None else self.dense
