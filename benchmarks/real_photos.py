"""The whole method on real photos: features → translator → captions, scored beside their controls.

    DEVIL_REAL_DATA=... python benchmarks/real_photos.py

6,000 photos through four layers of an ImageNet ViT-Ti/16 into a small GPT-2 trained on text
alone; scored on 1,091 other photos. Features are kept in `--output` and used again; training that
was stopped goes on. Writes `benchmarks/results/real_photos.json` and a report of 24 photos.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from devil.audit import AuditConfig
from devil.config import (
    BackboneConfig,
    DecodingConfig,
    ExtractionConfig,
    LanguageModelConfig,
    TrainingConfig,
    TranslatorConfig,
)
from devil.data.webdataset import list_shards, read_shard
from devil.errors import DataError
from devil.evaluation.stored import (
    CONTROLS,
    SHUFFLED,
    StoredEvaluation,
    evaluate_stored,
    stored_rows,
)
from devil.features import FeatureStore, package_versions
from devil.files import write_json
from devil.model import DeViL
from devil.report.page import write_report
from devil.report.table import ReportTable
from pipelines.audit import AuditOptions, audit, audited
from pipelines.cli import run_script
from pipelines.extract import ExtractOptions, extract
from pipelines.pool import PoolConfig
from pipelines.train import TrainOptions, train

logger = logging.getLogger("real_photos")

LAYERS = ("blocks.2", "blocks.5", "blocks.8", "blocks.11")
QUERIES = ("dog", "man", "children", "water", "grass", "red shirt")
PHOTOS = 24


@dataclass(frozen=True, kw_only=True)
class RealPhotosOptions:
    """Options of the benchmark."""

    output: str = "runs/real_photos"
    """Folder of features, model and report; features are used again."""
    results: str = "benchmarks/results/real_photos.json"
    """Where the figures are written."""
    steps: int = 9_000
    """Training steps, of 16 photos with five captions each."""
    learning_rate: float = 7e-4
    """Peak learning rate."""
    seed: int = 0
    """Seed of the draws and of training."""


def real_photos(options: RealPhotosOptions) -> dict[str, Any]:
    """Run everything; returns what the results file holds.

    Raises:
        DataError: `DEVIL_REAL_DATA` does not name a folder with the photos.
    """
    data = Path(os.environ.get("DEVIL_REAL_DATA") or "nowhere")
    if not (data / "photos" / "train").is_dir():
        raise DataError(
            "DEVIL_REAL_DATA must name a folder with photos/ and models/ in it; it is "
            f"{os.environ.get('DEVIL_REAL_DATA')!r}."
        )
    output = Path(options.output)
    minutes: dict[str, float] = {}
    for split in ("train", "val"):
        extract(extract_options(data, output, split, options.seed))
        store = FeatureStore.open(str(output / "features" / split))
        minutes[f"extract_{split}"] = sum(store.metadata(p).seconds for p in store.parts()) / 60
    train(train_options(data, output, options))
    model = DeViL.from_pretrained(output / "model")
    minutes["train"] = model.summary["minutes"]
    with _timed("evaluate", minutes):
        rows = {
            split: stored_rows(model, FeatureStore.open(str(output / "features" / split)))
            for split in ("train", "val")
        }
        decoding = DecodingConfig(max_new_tokens=30)
        scores = evaluate_stored(
            model,
            rows["val"],
            controls=CONTROLS,
            train=rows["train"],
            decoding=decoding,
            seed=options.seed,
        )
    results = summarise(model, scores)
    write_json(options.results, results)
    with _timed("report", minutes):
        write_photos(data, output / "photos")
        request = audit_options(output)
        audit(request)
        write_report(
            output / "report",
            title="DeViL on real photos",
            introduction=INTRODUCTION,
            tables=result_tables(results),
            explanations=list(audited(request)),
        )
    results["minutes_by_stage"] = {name: round(value, 2) for name, value in minutes.items()}
    results["minutes"] = round(sum(minutes.values()), 2)
    write_json(options.results, results)
    print(json.dumps(results, indent=2))
    print(f"report: {output}/report/index.html")
    return results


INTRODUCTION = (
    "What four blocks of an ImageNet ViT-Ti/16 hold of photos that the translator never saw. "
    "Point at a location to read its caption."
)


def extract_options(data: Path, output: Path, split: str, seed: int) -> ExtractOptions:
    """Features of one split."""
    return ExtractOptions(
        shards=str(data / "photos" / split),
        store=str(output / "features" / split),
        backbone=BackboneConfig(
            name="timm:vit_tiny_patch16_224",
            weights=str(data / "models" / "vit_tiny_patch16_224.safetensors"),
            layers=LAYERS,
        ),
        extraction=ExtractionConfig(draws=8, seed=seed),
        pool=PoolConfig(workers=1),
    )


def train_options(data: Path, output: Path, options: RealPhotosOptions) -> TrainOptions:
    """The translator for the small GPT-2."""
    return TrainOptions(
        store=str(output / "features" / "train"),
        output=str(output),
        language_model=LanguageModelConfig(
            name=str(data / "models" / "caption-gpt2"), text="plain"
        ),
        translator=TranslatorConfig(
            width=512, depth=1, heads=8, feedforward=2048, class_tokens=True
        ),
        training=TrainingConfig(
            steps=options.steps,
            batch_size=16,
            captions_per_image=5,
            learning_rate=options.learning_rate,
            warmup_steps=200,
            weight_decay=1e-2,
            token_dropout=0.25,
            validation_rows=300,
            validate_every=3000,
            checkpoint_every=500,
            log_every=100,
            seed=options.seed,
        ),
        name="devil-real-photos",
        cpus_per_worker=1,
    )


def audit_options(output: Path) -> AuditOptions:
    """Dense captions and maps of 24 validation photos."""
    return AuditOptions(
        model=str(output / "model"),
        images=str(output / "photos"),
        output=str(output / "report"),
        audit=AuditConfig(queries=QUERIES),
        decoding=DecodingConfig(max_new_tokens=30),
        pool=PoolConfig(workers=1),
        report_images=PHOTOS,
    )


def summarise(model: DeViL, scores: StoredEvaluation) -> dict[str, Any]:
    """The content of the results file, but for the minutes."""
    every = scores.layers["all"]
    controls = {name: s.cider for name, s in scores.controls.items() if name != SHUFFLED}
    return {
        "cider": {layer: round(value, 4) for layer, value in scores.cider().items()},
        "cider_shuffled": round(scores.shuffled.cider, 4),
        "cider_controls": {name: round(value, 4) for name, value in controls.items()},
        "bleu_4": round(every["bleu_4"], 4),
        "scores": {layer: s.record() for layer, s in scores.layers.items()},
        "keys_hash": every.keys_hash,
        "rows": every.rows,
        "captions_seen": model.summary["captions_seen"],
        "translator_parameters": model.translator.parameter_count(),
        "training": model.summary["config"],
        "machine": describe_machine(),
        "versions": package_versions(),
    }


def result_tables(results: Mapping[str, Any]) -> list[ReportTable]:
    """The report's table."""
    controls = {"another picture's features": results["cider_shuffled"]}
    controls |= {k.replace("_", " "): v for k, v in results["cider_controls"].items()}
    return [
        ReportTable(
            title="Captions of photos",
            caption=f"CIDEr on {results['rows']} validation photos, five captions each",
            columns=("layer", "CIDEr"),
            rows=(
                *((layer, round(v, 3)) for layer, v in results["cider"].items()),
                *((f"control: {name}", round(v, 3)) for name, v in controls.items()),
            ),
        )
    ]


def write_photos(data: Path, folder: Path) -> None:
    """Every so-many-th validation photo as a file, for the report."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = list_shards(str(data / "photos" / "val"))
    samples = [s for shard in shards for s in read_shard(shard) if s.image]
    for sample in samples[:: len(samples) // PHOTOS][:PHOTOS]:
        assert sample.image is not None
        (folder / f"{sample.key}.jpg").write_bytes(sample.image)


@contextmanager
def _timed(stage: str, minutes: dict[str, float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    minutes[stage] = (time.perf_counter() - started) / 60


if __name__ == "__main__":
    run_script(RealPhotosOptions, real_photos, __doc__ or "")
