"""How fast the feature store feeds training, beside how fast training takes it, in one run.

    python benchmarks/read_back.py

Rows of four layers of a ViT-Ti/16, five captions each, are written into a temporary store; then an
epoch of batches is read without a step, and steps are taken on batches that are ready. Both sides
are as in the training on real photos (`benchmarks/real_photos.py`); the language model is that one
if `DEVIL_REAL_DATA` is set, and else a GPT-2 of random weights. Figures go to
`benchmarks/results/read-back.json`.
"""

import dataclasses
import itertools
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe_machine
from benchmarks.real_photos import LAYERS, train_options
from benchmarks.speed_models import caption_lengths, random_language_model
from devil.batches import TrainingBatches
from devil.config import BackboneConfig, ExtractionConfig, TrainingConfig, TranslatorConfig
from devil.features import FeatureStore, PartMetadata
from devil.files import write_json
from devil.language_model import LanguageModel, load_language_model
from devil.manifest import Manifest
from devil.part_writer import PartWriter
from devil.training import Trainer
from devil.translator import Translator
from devil.types import LayerShape
from pipelines.cli import run_script

NEEDED = 20
"""How many times as fast reading is to be."""
SHAPE = LayerShape(192, 14, 14)


@dataclass(frozen=True, kw_only=True)
class ReadBackOptions:
    """Options of the benchmark."""

    rows: int = 100_000
    """Rows of the store."""
    part_rows: int = 5_000
    """Rows of each of its files."""
    chunk_rows: int = 20_000
    """Rows in memory at once."""
    captions: int = 5
    """Captions of each row."""
    steps: int = 60
    """Steps of training that are timed."""
    results: str = "benchmarks/results"
    """Folder of the figures."""


def read_back(options: ReadBackOptions) -> dict[str, Any]:
    """Measure, write the figures, and print them."""
    lm, texts, translator, training = parts_of_training(options)
    with tempfile.TemporaryDirectory() as folder:
        store = synthetic_store(Path(folder), texts, options)
        batches = TrainingBatches(store, lm, training, class_tokens=translator.class_tokens)
        steps = batches.epoch_steps(0)
        started = time.perf_counter()
        read = sum(len(batch.visible) for batch in batches(0, steps))
        reading = read / (time.perf_counter() - started)
        trained = training_rate(translator, lm, batches, options.steps)
    found = {
        "machine": describe_machine() | {"threads": torch.get_num_threads()},
        "language_model": lm.config.name.rsplit("/", 1)[-1],
        "rows": options.rows,
        "layers": len(LAYERS),
        "captions_per_row": options.captions,
        "batch_size": training.batch_size,
        "rows_read_per_second": round(reading, 1),
        "rows_trained_per_second": round(trained, 1),
        "ratio": round(reading / trained, 1),
        "needed": NEEDED,
    }
    write_json(Path(options.results) / "read-back.json", found)
    print(
        f"{reading:,.0f} rows/s read, {trained:,.0f} rows/s trained on: {reading / trained:.1f} "
        f"times as fast; {NEEDED} are needed"
    )
    return found


def parts_of_training(
    options: ReadBackOptions,
) -> tuple[LanguageModel, list[str], TranslatorConfig, TrainingConfig]:
    """Language model, captions, translator and training as on real photos."""
    data = os.environ.get("DEVIL_REAL_DATA")
    like = train_options(Path(data or "nowhere"), Path("nowhere"))
    if data:
        lm = load_language_model(like.language_model)
        lines = (Path(data) / "cc3m-validation-2000.tsv").read_text().splitlines()
        texts = [line.split("\t")[0] for line in lines]
    else:
        lm = random_language_model("gpt2")
        words = np.random.default_rng(0)
        lengths = caption_lengths(2_000)
        texts = [" ".join(f"w{i}" for i in words.integers(3, 50_000, n)) for n in lengths]
    training = dataclasses.replace(
        like.training, chunk_rows=options.chunk_rows, validation_rows=0, steps=options.rows
    )
    return lm, texts, like.translator, training


def synthetic_store(folder: Path, texts: Sequence[str], options: ReadBackOptions) -> FeatureStore:
    """Seeded noise with captions in turn; every part holds the same features."""
    manifest = Manifest(
        backbone=BackboneConfig(name="timm:vit_tiny_patch16_224", layers=LAYERS),
        backbone_digest="none",
        transform={},
        layers=dict.fromkeys(LAYERS, SHAPE),
        class_tokens=True,
        extraction=ExtractionConfig(),
    )
    store = FeatureStore.create(str(folder), manifest)
    rng, turn, count = np.random.default_rng(0), itertools.cycle(texts), options.part_rows
    columns: dict[str, Any] = {"width": [500] * count, "height": [375] * count}
    for entry in store.row_schema():
        if entry.name.startswith(("feature.", "class_token.")):
            shape = (count, *entry.type.shape)
            columns[entry.name] = rng.standard_normal(shape, np.float32).astype(np.float16)
    for index in range(options.rows // count):
        columns["key"] = [f"{index:05d}{row:05d}" for row in range(count)]
        columns["captions"] = [list(itertools.islice(turn, options.captions)) for _ in range(count)]
        writer = PartWriter(store, f"{index:05d}")
        writer.add(columns)
        writer.commit(PartMetadata("none", 1, count, 0, 0.0))
    return store


def training_rate(
    config: TranslatorConfig, lm: LanguageModel, batches: TrainingBatches, steps: int
) -> float:
    """Rows that steps take in a second, on batches that are ready."""
    torch.manual_seed(0)
    widths = dict.fromkeys(LAYERS, SHAPE.channels)
    translator = Translator(config, widths, lm.embedding_width)
    translator.standardise_by(batches.statistics())
    trainer = Trainer(translator, lm, batches.config)
    warm = max(1, steps // 5)
    ready = list(batches(0, warm + steps))
    for batch in ready[:warm]:
        trainer.train_step(batch)
    started = time.perf_counter()
    for batch in ready[warm:]:
        trainer.train_step(batch)
    rows = sum(len(batch.visible) for batch in ready[warm:])
    return rows / (time.perf_counter() - started)


if __name__ == "__main__":
    run_script(ReadBackOptions, read_back, __doc__ or "")
