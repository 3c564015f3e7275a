"""Webdataset shards → feature store: one backbone pass over captioned photos, with Ray Data.

    python pipelines/extract.py 'cc3m/train/*.tar' --store features/cc3m \
        --backbone.name open_clip:ViT-B-32/openai --pool.gpus-per-worker 1

A run that is started again skips finished shards; what cannot be read stands in `errors/` with its
stage and reason.
"""

import dataclasses
import logging
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import tyro
from tqdm import tqdm

from devil.backbones import load_backbone
from devil.config import BackboneConfig, ExtractionConfig
from devil.data.webdataset import list_shards, shard_names
from devil.extraction import Extractor, ShardRecord, finished
from devil.features import FeatureStore, Manifest
from pipelines.cli import absolute, run_script
from pipelines.pool import PoolConfig, over_pool

logger = logging.getLogger("extract")


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """Options of extraction."""

    shards: tyro.conf.Positional[str]
    """Shards as img2dataset writes them: a folder, a .tar, or a glob; any fsspec address."""
    store: str
    """Folder of the feature store, made or gone on with."""
    backbone: BackboneConfig
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)


class ExtractionWorker:
    """One actor's backbone and store."""

    def __init__(self, store: str, backbone: BackboneConfig, threads: int) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = load_backbone(backbone, device=device)
        self.extractor = Extractor(loaded, FeatureStore.open(store), threads=threads)

    def __call__(self, shard: str) -> dict[str, Any]:
        """Extract one shard."""
        return self.extractor(shard)._asdict()


def extract(options: ExtractOptions) -> Manifest:
    """Fill a feature store.

    Returns:
        The store's manifest with its final counts.

    Raises:
        DataError: there are no shards, or two have the same name.
        BackboneError, LayerError: the backbone cannot be had.
        FeatureStoreError: the store belongs to another configuration.
    """
    shards = list_shards(options.shards)
    shard_names(shards)  # refuses two of one name
    backbone = load_backbone(options.backbone)
    weights = options.backbone.weights
    if weights not in ("pretrained", "random"):  # workers have working folders of their own
        weights = absolute(weights)
    config = dataclasses.replace(options.backbone, layers=backbone.layers, weights=weights)
    store = FeatureStore.create(
        absolute(options.store), Manifest.of(backbone, config, options.extraction)
    )
    del backbone
    records = list(_run(shards, store, config, options.pool))
    parts = [store.metadata(part) for part in store.parts()]
    manifest = dataclasses.replace(
        store.manifest, rows=sum(p.rows for p in parts), errors=sum(p.errors for p in parts)
    )
    store.write_manifest(manifest)
    _summarise(store, records)
    return manifest


def _run(
    shards: list[str], store: FeatureStore, config: BackboneConfig, pool: PoolConfig
) -> list[ShardRecord]:
    """Records of all shards; workers are started for those alone that are not done."""
    done = {shard: part for shard in shards if (part := finished(store, shard)) is not None}
    records = [
        ShardRecord(shard, part.rows, part.errors, part.seconds, skipped=True)
        for shard, part in done.items()
    ]
    left = [shard for shard in shards if shard not in done]
    arguments = {"store": store.root, "backbone": config, "threads": pool.cpus_per_worker}
    started, rows = time.perf_counter(), 0
    found = over_pool(left, ExtractionWorker, arguments, pool) if left else ()
    progress = {"total": len(shards), "initial": len(done), "unit": "shard", "desc": "extract"}
    with tqdm(**progress, mininterval=1) as bar:
        for row in found:
            record = ShardRecord(**row)
            records.append(record)
            rows += 0 if record.skipped else record.rows
            rate = rows / (time.perf_counter() - started)
            bar.set_postfix_str(f"{rows:,} rows, {rate:.0f}/s, {record.errors} errors in last")
            bar.update()
    return records


def _summarise(store: FeatureStore, records: list[ShardRecord]) -> None:
    skipped = sum(record.skipped for record in records)
    logger.info(
        "%s: %d rows, %d errors in %d shards (%d done before)",
        store.root,
        store.manifest.rows,
        store.manifest.errors,
        len(records),
        skipped,
    )
    reasons: dict[tuple[str, str], int] = {}
    for row in store.errors().select(["stage", "error"]).to_pylist():
        reason = (row["stage"], row["error"])
        reasons[reason] = reasons.get(reason, 0) + 1
    for (stage, error), count in sorted(reasons.items(), key=lambda item: -item[1]):
        logger.info("  %d × %s at stage '%s'; see %s/errors", count, error, stage, store.root)


if __name__ == "__main__":
    run_script(ExtractOptions, extract, __doc__ or "")
