"""Retraining end to end on real photos: half of the shards, all, wrong captions, and back.

    DEVIL_REAL_DATA=... python benchmarks/retraining.py

What must come out: both honest models are released, the one of wrong captions is refused, and the
rollback makes the first one current. Scores and minutes go to `benchmarks/results/retraining.json`.
"""

import contextlib
import io
import json
import shutil
import tarfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.real_photos import DECODING, extract_options, real_data, train_options
from devil.data.webdataset import list_shards, read_shard
from devil.errors import ConfigError, GateError
from devil.evaluation.gate import GateConfig
from devil.files import write_json
from devil.versions import ModelVersions
from pipelines.cli import run_script
from pipelines.extract import extract
from pipelines.retrain import GATE, RUNS, RetrainOptions, RollbackOptions, retrain, rollback


@dataclass(frozen=True, kw_only=True)
class RetrainingOptions:
    """Options of the benchmark."""

    output: str = "runs/retraining"
    """Folder of shards, features and versions; a new one."""
    results: str = "benchmarks/results/retraining.json"
    """File of the figures."""
    steps: int = 600
    """Steps of each training, of 16 photos with five captions each."""


def retraining(options: RetrainingOptions) -> dict[str, Any]:
    """Run all stages; returns what the results file holds.

    Raises:
        DataError: `DEVIL_REAL_DATA` does not name a folder with the photos.
        ConfigError: the output folder exists.
    """
    data, output = real_data(), Path(options.output).resolve()
    if output.exists():
        raise ConfigError(f"{output} exists; remove it, or give another --output.")
    extract(extract_options(data, output, "val"))
    shards = [Path(shard) for shard in list_shards(str(data / "photos" / "train"))]
    asked = retrain_options(data, output, options.steps)
    half = len(shards) // 2

    copy_shards(shards[:half], output / "shards")
    stages = {"first half": stage(asked)}
    copy_shards(shards[half:], output / "shards")
    stages["all"] = stage(asked)
    for shard in shards[:half]:
        write_wrong_captions(shard, output / "wrong" / shard.name)
    wrong = replace(asked, shards=str(output / "wrong"), store=str(output / "features" / "wrong"))
    stages["wrong captions"] = stage(wrong)
    stages["rollback"] = go_back(asked.models)
    results = {
        "stages": stages,
        "shards": len(shards),
        "steps": options.steps,
        "machine": describe_machine(),
    }
    write_json(options.results, results)
    return results


def stage(options: RetrainOptions) -> dict[str, Any]:
    """Retrain; the verdict, what is current afterwards, and the minutes."""
    started = time.perf_counter()
    with contextlib.suppress(GateError):  # the verdict says so
        retrain(options)
    minutes = (time.perf_counter() - started) / 60
    verdicts = (Path(options.models) / RUNS).glob(f"*/{GATE}")
    verdict = json.loads(max(verdicts, key=lambda path: path.stat().st_mtime_ns).read_text())
    return {**verdict, "current_after": current(options.models), "minutes": round(minutes, 2)}


def go_back(models: str) -> dict[str, Any]:
    """Roll back; what is current afterwards, and the seconds."""
    started = time.perf_counter()
    rollback(RollbackOptions(models=models))
    seconds = time.perf_counter() - started
    return {"current_after": current(models), "seconds": round(seconds, 3)}


def current(models: str) -> str | None:
    """Name of the version in use."""
    release = ModelVersions(models).current()
    return release.current if release else None


def retrain_options(data: Path, output: Path, steps: int) -> RetrainOptions:
    """The real photos' model, trained for a short time."""
    extraction = extract_options(data, output, "train")
    full = train_options(data, output)
    short = replace(
        full.training,
        steps=steps,
        warmup_steps=min(steps, full.training.warmup_steps),
        validation_rows=0,
    )
    return RetrainOptions(
        shards=str(output / "shards"),
        store=extraction.store,
        held_out=str(output / "features" / "val"),
        models=str(output / "models"),
        backbone=extraction.backbone,
        extraction=extraction.extraction,
        pool=extraction.pool,
        language_model=full.language_model,
        translator=full.translator,
        training=short,
        decoding=DECODING,
        gate=GateConfig(),
        name=full.name,
        cpus_per_worker=full.cpus_per_worker,
    )


def copy_shards(shards: list[Path], folder: Path) -> None:
    """Shards with their statistics, where a download would put them."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        for file in (shard, shard.with_name(f"{shard.stem}_stats.json")):
            shutil.copy(file, folder)


def write_wrong_captions(shard: Path, copy: Path) -> None:
    """A shard in which every picture has the captions of the one before."""
    samples = list(read_shard(str(shard)))
    copy.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(copy, "w") as tar:
        for sample, other in zip(samples, samples[-1:] + samples, strict=False):
            assert sample.image is not None
            captions = json.dumps({"captions": other.captions}).encode()
            for suffix, content in (("jpg", sample.image), ("json", captions)):
                member = tarfile.TarInfo(f"{sample.key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    run_script(RetrainingOptions, retraining, __doc__ or "")
