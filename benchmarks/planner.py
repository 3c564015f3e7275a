"""The driver's part in a very large extraction: time and memory with a hundred thousand shards.

    python benchmarks/planner.py

The shards are empty files on the local disk, half of them finished; workers do nothing. So what is
measured is what the driver does: list, compare, plan, and hand out units.
"""

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.memory import peaks, resident
from devil.config import BackboneConfig, ExtractionConfig
from devil.data.shard import Shard
from devil.data.source import Source, open_source
from devil.features import FeatureStore, PartMetadata
from devil.files import write_json
from devil.manifest import Manifest
from devil.part_writer import PartWriter
from devil.shard_progress import Plan, check_names, finished_parts, plan, with_sizes
from devil.types import LayerShape
from pipelines.cli import run_script
from pipelines.pool import PoolConfig, over_pool, start_ray

logger = logging.getLogger("planner")


@dataclass(frozen=True, kw_only=True)
class PlannerOptions:
    """Options of the benchmark."""

    shards: int = 100_000
    """Shards that are listed and compared."""
    units: tuple[int, ...] = (1_000, 10_000)
    """Units that are handed to workers."""
    results: str = "benchmarks/results/planner.json"
    """The figures."""


class Idle:
    """A worker that does nothing."""

    def __call__(self, unit: str) -> dict[str, Any]:
        """Answer."""
        return {"unit": unit}


def planner(options: PlannerOptions) -> dict[str, Any]:
    """Measure, and write the figures."""
    found: dict[str, Any] = {"machine": describe_machine(), "shards": options.shards}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = _store(folder, options.shards)
        source = open_source(str(folder / "shards"))
        shards = _timed(found, "list", source.shards)
        _timed(found, "check_names", lambda: check_names(shards))
        done = _timed(found, "finished", lambda: finished_parts(store, source, shards))
        left = [shard for shard in shards if shard.name not in done]
        _timed(found, "plan", lambda: planned(store, source, left, len(done)))
        units = _timed(found, "units", lambda: [json.dumps(shard) for shard in left])
    assert len(done) == options.shards // 2 and len(units) == options.shards - len(done)
    start_ray()
    found["handed_out"] = [_handed_out(count) for count in options.units]
    write_json(options.results, found)
    print(json.dumps(found, indent=2))
    return found


def planned(store: FeatureStore, source: Source, left: list[Shard], done: int) -> Plan:
    """What a dry run adds up."""
    return plan(store, source, with_sizes(source, left), done, rate=1.0)


def _timed(found: dict[str, Any], stage: str, work: Callable[[], Any]) -> Any:
    """A stage's result; its seconds, and what it adds to the driver's memory, are kept."""
    before, started = resident(os.getpid()), time.perf_counter()
    result = work()
    seconds, after = time.perf_counter() - started, resident(os.getpid())
    found[stage] = {"seconds": round(seconds, 2), "mb": round((after - before) / 1e6, 1)}
    return result


def _handed_out(count: int) -> dict[str, Any]:
    """Units through a pool that does nothing with them."""
    config = PoolConfig(workers=2, cpus_per_worker=1)
    units = [f"unit {index}" for index in range(count)]
    before, started, first = resident(os.getpid()), time.perf_counter(), 0.0
    with peaks() as peak:
        for _ in over_pool(units, Idle, {}, config):
            first = first or time.perf_counter()
    steady = time.perf_counter() - first
    return {
        "units": count,
        "before_the_first_seconds": round(first - started, 1),
        "milliseconds_each": round(1000 * steady / count, 2),
        "driver_mb": round((peak.driver - before) / 1e6, 1),
    }


def _store(folder: Path, shards: int) -> FeatureStore:
    """Empty shards, and a store in which every other one is finished."""
    (folder / "shards").mkdir()
    manifest = Manifest(
        backbone=BackboneConfig(name="timm:vit_base_patch32_224"),
        backbone_digest="none",
        transform={},
        layers={f"blocks.{i}": LayerShape(768, 7, 7) for i in (2, 5, 8, 11)},
        class_tokens=True,
        extraction=ExtractionConfig(),
    )
    store = FeatureStore.create(str(folder / "store"), manifest)
    (folder / "shards" / "000000.tar").touch()
    identity = open_source(str(folder / "shards")).identity
    with PartWriter(store, "000000") as writer:
        size, head = identity(open_source(str(folder / "shards")).shards()[0])
        writer.commit(PartMetadata("000000.tar", size, 0, 0, 0.0, source_head=head))
    first = Path(store.part_path("000000"))
    for index in range(1, shards):
        (folder / "shards" / f"{index:06d}.tar").touch()
        if index % 2 == 0:
            shutil.copy(first, first.with_name(f"part-{index:06d}.parquet"))
    return store


if __name__ == "__main__":
    run_script(PlannerOptions, planner, __doc__ or "")
