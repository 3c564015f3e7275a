"""Times of several ways to do the same work: interleaved repeats, medians, ratios of pairs."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from devil.cost import synchronise


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to do the work."""

    run: Callable[[], Any]
    """Does it, or a part of it, and returns what came out."""
    share: float = 1.0
    """The part of the work that `run` does; times are divided by it."""
    dtype: str = "float32"
    """Number format."""


class Seconds(NamedTuple):
    """What the whole work took, once for each repeat."""

    wall: list[float]
    cpu: list[float]
    """Of this process's threads together: with one thread, other programs hardly change it."""


def paired_seconds(
    sides: Mapping[str, Side], repeats: int, device: torch.device
) -> dict[str, Seconds]:
    """Seconds of the whole work by side; each repeat runs all sides.

    The order of the sides turns round at each repeat, so that none always runs behind another.
    """
    seconds = {name: Seconds([], []) for name in sides}
    for repeat in range(repeats):
        names = list(sides) if repeat % 2 == 0 else list(sides)[::-1]
        for name in names:
            synchronise(device)
            started, used = time.perf_counter(), time.process_time()
            sides[name].run()
            synchronise(device)
            share = sides[name].share
            seconds[name].wall.append((time.perf_counter() - started) / share)
            seconds[name].cpu.append((time.process_time() - used) / share)
    return seconds


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """Median over repeats of slow / fast."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))
