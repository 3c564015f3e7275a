"""Extraction through Ray beside a bare loop of the same backbone, and its memory over many shards.

    DEVIL_REAL_DATA=... python benchmarks/extraction.py

The bare loop reads the same shards, decodes, and runs the backbone; it pools and writes nothing.
Both use the same threads. A rate is that of the steady state: the bare loop's without its first
shard, ours from the first part to the last; what comes before the first part is told apart.
"""

import dataclasses
import json
import logging
import os
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_machine
from benchmarks.memory import peaks
from benchmarks.real_photos import extract_options, real_data
from devil.backbones import Backbone, load_backbone
from devil.config import BackboneConfig
from devil.data.webdataset import read_shard
from devil.features import FeatureStore
from devil.files import write_json
from devil.images import open_image
from pipelines.cli import run_script
from pipelines.extract import ExtractOptions, extract
from pipelines.pool import KEEP_MEMORY, PoolConfig, start_ray

logger = logging.getLogger("extraction")

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class ExtractionOptions:
    """Options of the benchmark."""

    shards: int = 5
    """Shards of real photos; the first warms up."""
    repeats: int = 3
    """Timed repeats, in turns."""
    many: tuple[int, ...] = (10, 1_000)
    """Numbers of tiny shards over which memory is compared."""
    results: str = "benchmarks/results/extraction.json"
    """The figures."""


def extraction(options: ExtractionOptions) -> dict[str, Any]:
    """Measure both, and write the figures."""
    data, threads = real_data(), os.cpu_count() or 1
    torch.set_num_threads(threads)
    start_ray()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # One shard before all: a driver's first run loads what stays, and no worker is older.
        _, *memory = [_memory(data, folder, count) for count in (1, *options.many)]
        rates = _rates(data, folder, options, threads)
    found = {
        "machine": describe_machine() | {"torch": torch.__version__, "threads": threads},
        "backbone": "timm:vit_tiny_patch16_224",
        **rates,
        "memory": memory,
        "memory_ratio": {
            who: round(memory[-1][who] / memory[0][who], 3) for who in ("driver_mb", "worker_mb")
        },
    }
    write_json(options.results, found)
    print(json.dumps(found, indent=2))
    return found


def _rates(data: Path, folder: Path, options: ExtractionOptions, threads: int) -> dict[str, Any]:
    """Images per second of both, in turns."""
    wanted = extract_options(data, folder, "train")
    wanted = dataclasses.replace(
        wanted, limit=options.shards, pool=PoolConfig(workers=1, cpus_per_worker=threads)
    )
    backbone = load_backbone(wanted.backbone)
    shards = sorted((data / "photos" / "train").glob("*.tar"))[: options.shards]
    bare, ours, start = [], [], []
    for repeat in range(options.repeats):
        bare.append(bare_rate(backbone, shards))
        store = folder / f"store{repeat}"
        rate, seconds = ray_rate(dataclasses.replace(wanted, store=str(store)))
        ours.append(rate)
        start.append(seconds)
        logger.info("bare %.1f/s, through Ray %.1f/s (start-up %.1f s)", bare[-1], rate, seconds)
    ratios = [o / b for o, b in zip(ours, bare, strict=True)]
    return {
        "bare_images_per_second": [round(rate, 2) for rate in bare],
        "images_per_second": [round(rate, 2) for rate in ours],
        "startup_seconds": [round(seconds, 1) for seconds in start],
        "ratio": round(statistics.median(ratios), 3),
    }


@torch.inference_mode()
def bare_rate(backbone: Backbone, shards: list[Path]) -> float:
    """Read, decode, run the backbone; the first shard warms up."""
    count, started = 0, 0.0
    for index, shard in enumerate(shards):
        if index == 1:
            started = time.perf_counter()
        samples = (sample for sample in read_shard(str(shard)) if sample.image)
        while batch := list(islice(samples, BATCH)):
            pictures = [backbone.transform(open_image(sample.image or b"")) for sample in batch]
            backbone(torch.stack(pictures))
            count += len(batch) if index else 0
    return count / (time.perf_counter() - started)


def ray_rate(options: ExtractOptions) -> tuple[float, float]:
    """Images per second from the first part to the last, and seconds before the first one."""
    started = time.time()
    extract(options)
    store = FeatureStore.open(options.store)
    times = sorted((os.stat(part).st_mtime, store.metadata(part)) for part in store.parts())
    (first, begin), (last, _) = times[0], times[-1]
    rows = sum(part.rows + part.errors for _, part in times[1:])
    return rows / (last - first), first - begin.seconds - started


def _memory(data: Path, folder: Path, shards: int) -> dict[str, Any]:
    """Peak memory while tiny shards go through one worker."""
    source = folder / f"shards{shards}"
    source.mkdir()
    tiny = _tiny_shard(data, folder)
    for index in range(shards):
        shutil.copy(tiny, source / f"{index:06d}.tar")
    options = ExtractOptions(
        shards=str(source),
        store=str(folder / f"many{shards}"),
        backbone=BackboneConfig(name="timm:test_resnet", weights="random", image_size=64),
        pool=PoolConfig(workers=1, cpus_per_worker=1),
    )
    started = time.perf_counter()
    with peaks() as found:
        extract(options)
    return {
        "shards": shards,
        "seconds": round(time.perf_counter() - started, 1),
        "driver_mb": round(found.driver / 1e6, 1),
        "worker_mb": round(found.worker / 1e6, 1),
    }


def _tiny_shard(data: Path, folder: Path) -> Path:
    """The first photos of a shard."""
    path = folder / "tiny.tar"
    first = data / "photos" / "train" / "00000.tar"
    with tarfile.open(first) as whole, tarfile.open(path, "w") as tar:
        for member in islice(whole, 12):
            tar.addfile(member, whole.extractfile(member))
    return path


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    run_script(ExtractionOptions, extraction, __doc__ or "")
