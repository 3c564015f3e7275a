"""Speed of the engine beside the published loops and a batched version, in one run.

    python benchmarks/speed.py --tasks dense saliency train --models resnet50 opt-125m

Each way's results are compared before any is timed; repeats are interleaved. Figures go to
`benchmarks/results/speed-DEVICE.json`; earlier ones stay, each with its machine, except where the
same machine measures them again. Every way runs in one process with the same threads and the same
memory allocator (`pipelines.pool.KEEP_MEMORY`, with which the process starts again on a CPU).
"""

import copy
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.cases import DTYPES, Case, measured
from benchmarks.machine import describe_machine
from benchmarks.speed_models import (
    BACKBONES,
    LANGUAGE_MODELS,
    REAL,
    Explained,
    caption_prefixes,
    explained,
    in_dtype,
    language_model,
)
from benchmarks.speed_tasks import (
    dense_case,
    saliency_case,
    samples_case,
    stopping_case,
    vocabulary_case,
)
from benchmarks.speed_training import extraction_case, training_case
from devil.data.webdataset import list_shards, read_shard
from devil.errors import ConfigError
from devil.files import write_atomically
from devil.language_model import LanguageModel
from devil.model import DeViL
from devil.report.table import ReportTable
from devil.training import autocast_dtype
from pipelines.cli import run_script
from pipelines.pool import KEEP_MEMORY

logger = logging.getLogger("speed")

Task = Literal["dense", "saliency", "vocabulary", "samples", "train", "extract"]


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """Options of the benchmark."""

    tasks: tuple[Task, ...] = ("dense", "saliency", "vocabulary", "samples", "train", "extract")
    """What is measured."""
    models: tuple[str, ...] = ("resnet50", "opt-125m")
    """Backbones (`resnet50`, `vit-b-32`) and language models (`opt-125m`, `gpt2`, and with
    DEVIL_REAL_DATA `caption-gpt2`, `stories260k`), each with each."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ()
    """Number formats of the engine; empty: float32 on a CPU, and bfloat16 where it has it."""
    repeats: int = 5
    """Timed repeats of each way."""
    batch_size: int = 64
    """Images of a training step."""
    compile: bool = False
    """Measure the training step compiled, too, which takes minutes to begin."""
    photos: int = 64
    """Photos that are extracted."""
    results: str = "benchmarks/results"
    """Folder of the figures."""


def speed(options: SpeedOptions) -> list[dict[str, Any]]:
    """Measure, write the figures, and print a table.

    Raises:
        ConfigError: a model is unknown or needs DEVIL_REAL_DATA, or there is no GPU.
    """
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but PyTorch sees no GPU; use 'cpu'.")
    machine = describe_machine() | {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "allocator": {name: os.environ.get(name) for name in KEEP_MEMORY},
    }
    path = Path(options.results) / f"speed-{device.type}.json"
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options, device, Path(folder)):
            found = measured(case, repeats=options.repeats, device=device, machine=machine)
            for record in found:
                logger.info("%s", _line(record))
            records += found
            path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps(kept(path, records) + records, indent=2)
            write_atomically(path, f"{content}\n".encode())
    print(table(records).text())
    return records


def kept(path: Path, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Figures in a file that are not measured again: of other cases, or of other machines."""
    if not path.is_file():
        return []
    again = [_identity(record) for record in records]
    return [r for r in json.loads(path.read_text()) if _identity(r) not in again]


def _identity(record: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("task", "setting", "model", "device", "dtype", "machine")
    return tuple(record[name] for name in names)


def machine_name(record: Mapping[str, Any]) -> str:
    """What a figure was computed on."""
    return record["machine"]["gpu" if record["device"] == "cuda" else "processor"]


def cases(options: SpeedOptions, device: torch.device, folder: Path) -> Iterator[Case]:
    """All that the options ask for, one model after another.

    Samples are drawn from trained language models alone: random ones find all words likely.
    """
    data = Path(os.environ["DEVIL_REAL_DATA"]) if os.environ.get("DEVIL_REAL_DATA") else None
    unknown = set(options.models) - {*BACKBONES, *LANGUAGE_MODELS, *REAL}
    if unknown:
        raise ConfigError(
            f"models {sorted(unknown)} are unknown; there are "
            f"{', '.join([*BACKBONES, *LANGUAGE_MODELS, *REAL])}."
        )
    dtypes = options.dtypes or _dtypes(device)
    backbones = [name for name in options.models if name in BACKBONES]
    names = [name for name in options.models if name not in BACKBONES]
    for name in names:
        lm = language_model(name, data).to(device)
        if name in REAL and data is not None:
            yield from _real_cases(options.tasks, name, lm, data, dtypes)
            continue
        for backbone in backbones:
            whole = explained(backbone, name, lm, device)
            yield from _whole_cases(options, whole, dtypes, baseline=_baseline(device))
            if "extract" in options.tasks and name == names[0]:
                place = folder / backbone
                place.mkdir()
                yield extraction_case(
                    whole,
                    BACKBONES[backbone],
                    place,
                    photos=options.photos,
                    plain_photos=min(8, options.photos),
                )


def _dtypes(device: torch.device) -> tuple[str, ...]:
    low = autocast_dtype("auto", device) is not None
    if device.type == "cuda":
        return ("bfloat16",) if low else ("float32",)
    return ("float32", "bfloat16") if low else ("float32",)


def _baseline(device: torch.device) -> str:
    """Number format of what is measured against: float32 on a CPU, as published."""
    return "float32" if device.type == "cpu" else _dtypes(device)[0]


def _whole_cases(
    options: SpeedOptions, whole: Explained, dtypes: Sequence[str], baseline: str
) -> Iterator[Case]:
    """Cases from an image on."""
    models: dict[str, DeViL] = {d: in_dtype(whole.model, DTYPES[d]) for d in dtypes}
    run = (
        dict(models)
        if baseline in models
        else models | {baseline: in_dtype(whole.model, DTYPES[baseline])}
    )
    grids = sorted(n for n in whole.layers if n <= 196)
    if "saliency" in options.tasks:
        for locations in grids:
            yield saliency_case(whole, run, baseline, locations, [1] * 5, plain_locations=7)
        lengths = [1 + i % 4 for i in range(20)]
        yield saliency_case(whole, run, baseline, grids[-1], lengths, plain_locations=2)
    if "vocabulary" in options.tasks:
        yield vocabulary_case(whole, run, baseline, grids[0])
    if "dense" in options.tasks:
        for locations in grids:
            yield dense_case(whole, run, baseline, locations)
    if "train" in options.tasks:
        yield training_case(whole, dtypes, size=options.batch_size, compile=options.compile)


def _real_cases(
    tasks: Sequence[str],
    name: str,
    lm: LanguageModel,
    data: Path,
    dtypes: Sequence[str],
) -> Iterator[Case]:
    """Cases of a trained language model alone."""
    shards = list_shards(str(data / "photos" / "val"))
    captions = [
        text for shard in shards for sample in read_shard(shard) for text in sample.captions
    ]
    models = _in_dtypes(lm, dtypes)
    baseline = "float32" if "float32" in models else dtypes[0]
    if "dense" in tasks:
        for rows in (49, 196):
            yield stopping_case(name, models, baseline, caption_prefixes(lm, captions, rows))
    if "samples" in tasks:
        yield samples_case(name, models, baseline, caption_prefixes(lm, captions, 1))


def _in_dtypes(lm: LanguageModel, dtypes: Sequence[str]) -> dict[str, LanguageModel]:
    return {d: lm if d == "float32" else copy.deepcopy(lm).to(DTYPES[d]) for d in dtypes}


def table(records: Sequence[Mapping[str, Any]]) -> ReportTable:
    """The figures at a glance."""
    rows = []
    for record in records:
        line = record["roofline"] or {}
        rows.append(
            (
                f"{record['task']}: {record['setting']}",
                record["model"],
                record["dtype"],
                record["equal"],
                record["ours_s"],
                record["ratio_plain"],
                record["ratio_batched"],
                record["ours_cpu_s"],
                record["ratio_plain_cpu"],
                record["ratio_batched_cpu"],
                line.get("share"),
                machine_name(record),
            )
        )
    return ReportTable(
        title="Speed",
        caption="medians of interleaved repeats; ratios of the published loop's and the batched "
        "version's time to the engine's, then the same of the processor's time; share: least "
        "possible time on this device / time taken",
        columns=(
            "task",
            "model",
            "dtype",
            "equal",
            "s",
            "× plain",
            "× batched",
            "processor s",
            "× plain ",
            "× batched ",
            "share",
            "machine",
        ),
        rows=tuple(rows),
    )


def _line(record: Mapping[str, Any]) -> str:
    if not record["equal"]:
        return f"{record['task']}, {record['dtype']}: results differ: {record['compared']}"
    return (
        f"{record['task']} ({record['setting']}), {record['model']}, {record['dtype']}: "
        f"{record['ours_s']:.3f} s; plain × {record['ratio_plain'] or float('nan'):.1f}, "
        f"batched × {record['ratio_batched'] or float('nan'):.2f}, "
        f"roofline {record['roofline']['share']:.2f}; processor time {record['ours_cpu_s']:.2f} s, "
        f"× {record['ratio_plain_cpu'] or float('nan'):.1f}, "
        f"× {record['ratio_batched_cpu'] or float('nan'):.2f}"
    )


def with_kept_memory() -> None:
    """Start this process again with the allocator's settings, unless it has them."""
    if all(name in os.environ for name in KEEP_MEMORY):
        return
    command = [sys.executable, *sys.orig_argv[1:]]
    sys.exit(subprocess.run(command, env=os.environ | KEEP_MEMORY).returncode)


if __name__ == "__main__":
    with_kept_memory()
    run_script(SpeedOptions, speed, __doc__ or "")
