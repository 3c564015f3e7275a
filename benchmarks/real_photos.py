"""Real photos: the data, the backbone and the model that benchmarks on them share.

6,000 photos through four layers of an ImageNet ViT-Ti/16 into a small GPT-2 trained on text alone;
1,091 other photos are scored. `DEVIL_REAL_DATA` names the folder with photos and weights.
"""

import os
from pathlib import Path

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
from pipelines.audit import AuditOptions
from pipelines.extract import ExtractOptions
from pipelines.pool import PoolConfig
from pipelines.train import TrainOptions

LAYERS = ("blocks.2", "blocks.5", "blocks.8", "blocks.11")
QUERIES = ("dog", "man", "children", "water", "grass", "red shirt")
PHOTOS = 24
DECODING = DecodingConfig(max_new_tokens=30)


def real_data() -> Path:
    """The folder with photos and weights.

    Raises:
        DataError: `DEVIL_REAL_DATA` does not name one.
    """
    data = Path(os.environ.get("DEVIL_REAL_DATA") or "nowhere")
    if not (data / "photos" / "train").is_dir():
        raise DataError(
            "DEVIL_REAL_DATA must name a folder with photos/ and models/ in it; it is "
            f"{os.environ.get('DEVIL_REAL_DATA')!r}."
        )
    return data.resolve()


def extract_options(data: Path, output: Path, split: str) -> ExtractOptions:
    """Features of one split."""
    return ExtractOptions(
        shards=str(data / "photos" / split),
        store=str(output / "features" / split),
        backbone=BackboneConfig(
            name="timm:vit_tiny_patch16_224",
            weights=str(data / "models" / "vit_tiny_patch16_224.safetensors"),
            layers=LAYERS,
        ),
        extraction=ExtractionConfig(draws=8),
        pool=PoolConfig(workers=1),
    )


def train_options(data: Path, output: Path) -> TrainOptions:
    """The model: 320,000 captions through one wide block."""
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
            steps=4_000,
            batch_size=16,
            captions_per_image=5,
            learning_rate=7e-4,
            warmup_steps=200,
            weight_decay=1e-2,
            token_dropout=0.25,
            validation_rows=300,
            validate_every=2000,
            checkpoint_every=500,
            log_every=100,
        ),
        name="devil-real-photos",
        cpus_per_worker=1,
    )


def audit_options(output: Path) -> AuditOptions:
    """Dense captions and maps of some validation photos, as a page to point at."""
    return AuditOptions(
        model=str(output / "model"),
        images=str(output / "photos"),
        output=str(output / "report"),
        audit=AuditConfig(queries=QUERIES),
        decoding=DECODING,
        pool=PoolConfig(workers=1),
        report_images=PHOTOS,
    )


def write_photos(data: Path, folder: Path) -> None:
    """Every so-many-th validation photo as a file, for the page."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = list_shards(str(data / "photos" / "val"))
    samples = [s for shard in shards for s in read_shard(shard) if s.image]
    for sample in samples[:: len(samples) // PHOTOS][:PHOTOS]:
        assert sample.image is not None
        (folder / f"{sample.key}.jpg").write_bytes(sample.image)
