"""One measurement: the same work done in several ways, compared first, then timed side by side."""

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from benchmarks.roofline import Phase, device_rates, roofline
from benchmarks.timing import Seconds, Side, median_ratio, paired_seconds

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Comparison(NamedTuple):
    """Whether two results are the same, as far as their number formats allow."""

    equal: bool
    details: dict[str, Any]
    """What was compared: the largest difference and what is allowed, or the share of equal rows."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    task: str
    """`dense`, `saliency`, `vocabulary`, `samples`, `train` or `extract`."""
    setting: str
    """Sizes, in words."""
    model: str
    """Which models."""
    ours: Mapping[str, Side]
    """The engine, by number format."""
    plain: Side | None
    """The loop as published."""
    batched: Side | None
    """The batched version."""
    compare: Callable[[Mapping[str, Any], str], Comparison]
    """From all results by name (`plain`, `batched`, number formats) and one number format."""
    phases: Callable[[Any], Sequence[Phase]]
    """Work needed, given the engine's result."""
    others: Mapping[str, Side] = field(default_factory=dict)
    """Further sides that go into the record as `NAME_s` and `ratio_NAME` (the engine's over it)."""


def measured(
    case: Case, *, repeats: int, device: torch.device, machine: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Compare and time a case; one record for each number format of the engine.

    A record whose results differ has no times.
    """
    baselines = {"plain": case.plain, "batched": case.batched}
    sides = {name: side for name, side in baselines.items() if side is not None}
    sides |= dict(case.ours) | dict(case.others)
    results = {name: side.run() for name, side in sides.items()}
    found = {name: case.compare(results, name) for name in case.ours}
    timed = {n: s for n, s in sides.items() if n not in found or found[n].equal}
    seconds = paired_seconds(timed, repeats, device) if any(c.equal for c in found.values()) else {}
    return [
        _record(case, name, found[name], results[name], seconds, device)
        | {"repeats": repeats, "load_average": os.getloadavg()[0], "machine": dict(machine)}
        for name in case.ours
    ]


def _record(
    case: Case,
    dtype: str,
    comparison: Comparison,
    result: Any,
    seconds: Mapping[str, Seconds],
    device: torch.device,
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "task": case.task,
        "setting": case.setting,
        "model": case.model,
        "device": device.type,
        "dtype": dtype,
    }
    mine = seconds.get(dtype)
    record["ours_s"] = statistics.median(mine.wall) if mine else None
    record["ours_cpu_s"] = statistics.median(mine.cpu) if mine else None
    for name, side in (("plain", case.plain), ("batched", case.batched)):
        theirs = seconds.get(name)
        record[f"{name}_s"] = statistics.median(theirs.wall) if theirs else None
        record[f"{name}_cpu_s"] = statistics.median(theirs.cpu) if theirs else None
        record[f"ratio_{name}"] = median_ratio(theirs.wall, mine.wall) if mine and theirs else None
        cpu = median_ratio(theirs.cpu, mine.cpu) if mine and theirs else None
        record[f"ratio_{name}_cpu"] = cpu
        record[f"{name}_measured_share"] = side.share if side else None
        record[f"{name}_dtype"] = side.dtype if side else None
    for name in case.others:
        theirs = seconds.get(name)
        record[f"{name}_s"] = statistics.median(theirs.wall) if theirs else None
        if mine and theirs and name.endswith(dtype):
            record[f"ratio_{name}"] = median_ratio(mine.wall, theirs.wall)
            record[f"ratio_{name}_cpu"] = median_ratio(mine.cpu, theirs.cpu)
    record["equal"] = comparison.equal
    record["compared"] = comparison.details
    record["roofline"] = None
    if mine:
        rates = device_rates(device.type, DTYPES[dtype])
        itemsize = DTYPES[dtype].itemsize
        seconds_taken = statistics.median(mine.wall)
        record["roofline"] = roofline(case.phases(result), seconds_taken, rates, itemsize)
    return record
