"""Captioned photos → feature store: one backbone pass over every shard of a source, with Ray Data.

    python pipelines/extract.py 'cc3m/train/*.tar' --store features/cc3m \
        --backbone.name open_clip:ViT-B-32/openai --pool.gpus-per-worker 1

A run that is started again skips finished shards; what cannot be read stands in `errors/` with its
stage and reason. `--dry-run` says what is left and how long it will take.
"""

import contextlib
import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import torch
import tyro
from fsspec.implementations.local import LocalFileSystem

from devil.backbones import load_backbone
from devil.config import BackboneConfig, ExtractionConfig, SourceConfig
from devil.data.shard import Shard
from devil.data.source import Source, guessed_format, open_source
from devil.errors import BackboneError, ConfigError, DataError, StorageError
from devil.extraction import Extractor, ShardRecord
from devil.features import FeatureStore
from devil.lock import Lock
from devil.manifest import Manifest
from devil.shard_progress import check_names, finished_parts, plan, typical, with_sizes
from devil.storage import in_threads, storage
from pipelines.cli import absolute, run_script
from pipelines.extract_progress import Progress, log_counts, log_plan
from pipelines.pool import PoolConfig, over_pool, own_device, start_ray, worker_count

logger = logging.getLogger("extract")

LOCK = "extract.lock"
STALE_MINUTES = 2.0
MEASURED_ROWS = 256
"""Rows from which a dry run measures the rate."""


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """Options of extraction."""

    shards: tyro.conf.Positional[str]
    """Where the captioned photos are: a folder, a file or a glob; any fsspec address."""
    store: str
    """Folder of the feature store, made or gone on with."""
    backbone: BackboneConfig
    source: SourceConfig = field(default_factory=SourceConfig)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    limit: int | None = None
    """Only the first so many shards."""
    overwrite: bool = False
    """Remove these shards' parts first, and all of a store of another configuration."""
    dry_run: bool = False
    """Change nothing: say what is left, its bytes, and its hours at a rate measured here."""


class ExtractionWorker:
    """One actor's backbone, source and store."""

    def __init__(
        self,
        shards: str,
        source: SourceConfig,
        store: str,
        backbone: BackboneConfig,
        config: ExtractionConfig,
        threads: int,
    ) -> None:
        loaded, opened = load_backbone(backbone, device=own_device()), FeatureStore.open(store)
        found, wanted = loaded.digest(), opened.manifest.backbone_digest
        if found != wanted:
            raise BackboneError(
                f"{backbone.name} has the weights {found} on this worker, and {store} is of "
                f"{wanted}; give all machines the same ones."
            )
        self.extractor = Extractor(
            loaded, open_source(shards, source), opened, config, threads=threads
        )

    def __call__(self, shard: str) -> dict[str, Any]:
        """Extract one shard, given as JSON (Ray Data's columns hold no tuples)."""
        return {"record": json.dumps(self.extractor(Shard(*json.loads(shard)))._asdict())}


def extract(options: ExtractOptions) -> Manifest:
    """Fill a feature store.

    Returns:
        The store's manifest with its final counts.

    Raises:
        DataError: there are no shards, two have the same name, or workers died on some again and
            again; all others are finished then.
        BackboneError, LayerError: the backbone cannot be had.
        FeatureStoreError: the store belongs to another configuration.
        LockError: another extraction into this folder is running.
        StorageError: a folder or bucket cannot be reached, or is full.
    """
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"limit is {options.limit}; allowed: at least 1.")
    address = absolute(options.shards)
    read_by = _source_config(address, options.source)
    source = open_source(address, read_by)
    shards = source.shards()
    check_names(shards)
    shards = shards[: options.limit]
    backbone = load_backbone(options.backbone, device=own_device() if options.dry_run else "cpu")
    weights = options.backbone.weights
    if weights not in ("pretrained", "random"):  # workers have working folders of their own
        weights = absolute(weights)
    config = dataclasses.replace(options.backbone, layers=backbone.layers, weights=weights)
    manifest = Manifest.of(backbone, config, options.extraction)
    if options.dry_run:
        planned = FeatureStore if options.overwrite else FeatureStore.planned
        store = planned(absolute(options.store), manifest)
        _plan(Extractor(backbone, source, store, options.extraction), shards, options)
        return store.manifest
    del backbone
    arguments = {
        "shards": address,
        "source": read_by,
        "store": absolute(options.store),
        "backbone": config,
        "config": options.extraction,
        "threads": options.pool.cpus_per_worker,
    }
    with _alone(absolute(options.store)):
        store = FeatureStore.create(absolute(options.store), manifest, overwrite=options.overwrite)
        if options.overwrite:
            store.remove({shard.name for shard in shards})
        deadly = _run(shards, source, store, arguments, options.pool)
        log_counts(store, _count(store))
    if deadly:
        raise DataError(
            f"workers died on {len(deadly)} shards, which were set aside: {', '.join(deadly[:5])}"
            f"{', ...' if len(deadly) > 5 else ''}. All others are finished. Look at these for "
            "pictures that take too much memory, mend or remove them, and start again."
        )
    return store.manifest


def _alone(store: str) -> contextlib.AbstractContextManager[Any]:
    """One extraction at a time into a folder; a bucket has no locks.

    A job that was lost is started anew at once, on another machine: it waits for the lost one's
    lock to go stale.
    """
    with storage(store):
        fs, path = fsspec.core.url_to_fs(store)
    if not isinstance(fs, LocalFileSystem):
        return contextlib.nullcontext()
    return Lock(Path(path) / LOCK, stale_minutes=STALE_MINUTES, patient=True)


def _run(
    shards: Sequence[Shard],
    source: Source,
    store: FeatureStore,
    arguments: dict[str, Any],
    pool: PoolConfig,
) -> list[str]:
    """Extract what is not done; names of the shards that were set aside."""
    done = finished_parts(store, source, shards)
    left = [shard for shard in shards if shard.name not in done]
    names = {shard.name for shard in left}
    store.remove_unfinished(names)
    logger.info("%d shards, %d of them finished before", len(shards), len(done))
    if not left:
        return []
    start_ray()
    deadly: list[str] = []
    units = [json.dumps(shard) for shard in left]
    try:
        with Progress(len(shards), len(done), worker_count(pool, len(left))) as progress:
            for row in over_pool(units, ExtractionWorker, arguments, pool, deadly=deadly):
                progress.update(ShardRecord(**json.loads(row["record"])))
    except BaseException:
        with contextlib.suppress(StorageError):  # what ended the run is told, and not this
            store.remove_unfinished(names)
        raise
    store.remove_unfinished(names)
    return [Shard(*json.loads(unit)).name for unit in deadly]


def _count(store: FeatureStore) -> Counter[str]:
    """Write the counts of all parts into the manifest; returns the errors by reason."""
    parts = in_threads(store.metadata, store.parts())
    rows, errors = sum(part.rows for part in parts), sum(part.errors for part in parts)
    store.write_manifest(dataclasses.replace(store.manifest, rows=rows, errors=errors))
    return sum((Counter(part.failed) for part in parts), Counter())


def _plan(extractor: Extractor, shards: Sequence[Shard], options: ExtractOptions) -> None:
    """Measure on a typical shard that is left, and say what a run would do."""
    store, source = extractor.store, extractor.source
    done = {} if options.overwrite else finished_parts(store, source, shards)
    left = with_sizes(source, [shard for shard in shards if shard.name not in done])
    torch.set_num_threads(options.pool.cpus_per_worker)
    rate = extractor.rate(typical(left)[0], MEASURED_ROWS) if left else 0.0
    start_ray()
    workers = worker_count(options.pool, max(1, len(left)))
    log_plan(plan(store, source, left, len(done), rate=rate), workers)


def _source_config(address: str, config: SourceConfig) -> SourceConfig:
    """The same for workers, who have working folders of their own and need not guess the format."""
    if config.format == "auto":
        config = dataclasses.replace(config, format=guessed_format(address))
    if config.images is None:
        return config
    return dataclasses.replace(config, images=absolute(config.images))


if __name__ == "__main__":
    run_script(ExtractOptions, extract, __doc__ or "")
