"""Feature stores made up of seeded numbers, in which every vector tells where it comes from."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from devil.config import BackboneConfig, ExtractionConfig
from devil.features import FeatureStore, PartMetadata
from devil.manifest import Manifest
from devil.part_writer import PartWriter
from devil.types import LayerShape

LAYERS = {"shallow": LayerShape(4, 3, 2), "deep": LayerShape(5, 2, 2)}
CAPTIONS = ("a red circle", "a blue square")


def synthetic_store(
    folder: Path,
    parts: Iterable[int] = (9, 5, 8),
    *,
    mode: str = "pooled",
    draws: int = 3,
    captions: Sequence[str] = CAPTIONS,
) -> FeatureStore:
    """A store whose first channel is the row's number, and whose second is the draw."""
    manifest = Manifest(
        backbone=BackboneConfig(name="timm:test_vit"),
        backbone_digest="abc",
        transform={},
        layers=LAYERS,
        class_tokens=True,
        extraction=ExtractionConfig(draws=draws, mode=mode),  # type: ignore[arg-type]
    )
    store = FeatureStore.create(str(folder), manifest)
    rng, number = np.random.default_rng(0), 0
    for index, rows in enumerate(parts):
        numbers = np.arange(number, number + rows)
        columns: dict[str, Any] = {
            "key": [f"row{i}" for i in numbers],
            "captions": [list(captions)] * rows,
            "width": [64] * rows,
            "height": [64] * rows,
        }
        for entry in store.row_schema():
            if entry.name not in columns:
                values = rng.normal(size=(rows, *entry.type.shape))
                if entry.name.startswith("feature.") and mode == "pooled":
                    values[:, :, 0] = numbers[:, None]
                    values[:, :, 1] = np.arange(1 + draws)
                else:
                    values[:, 0] = numbers.reshape(-1, *[1] * (values.ndim - 2))
                columns[entry.name] = values
        writer = PartWriter(store, f"{index:05d}")
        if rows:
            writer.add(columns)
        writer.commit(PartMetadata("x", 1, rows, 0, 0.0))
        number += rows
    return store


def counted(store: FeatureStore) -> FeatureStore:
    """The store as an extraction leaves it that has ended."""
    rows = sum(part[0] for part in store.contents().values())
    store.write_manifest(dataclasses.replace(store.manifest, rows=rows))
    return FeatureStore.open(store.root)
