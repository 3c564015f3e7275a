"""One shard of captioned pictures → one part of a feature store.

``read → decode → transform → backbone → pool and draw → write``; a row that fails at any stage goes
to `errors` with the stage and the reason. The shard is the unit of work, and its rows depend on
their keys and the seed alone, so workers, restarts and batches change nothing.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import fsspec
import numpy as np
import torch
from torch import Tensor

from devil.backbones import Backbone
from devil.data.webdataset import Sample, read_shard, shard_name
from devil.errors import CaptionError, DataError, FeatureStoreError, ImageError
from devil.features import FeatureStore, PartMetadata, PartWriter
from devil.images import open_image
from devil.pooling import dropout_masks, masked_mean, mean_pool, row_generator
from devil.prefetching import prefetched

HALF_MAX = float(np.finfo(np.float16).max)


class ShardRecord(NamedTuple):
    """What became of one shard; `skipped` when it was done before."""

    shard: str
    rows: int
    errors: int
    seconds: float
    skipped: bool = False


class _Prepared(NamedTuple):
    sample: Sample
    tensor: Tensor
    size: tuple[int, int]


class _Failure(NamedTuple):
    key: str
    source: str
    stage: str
    error: Exception


class ShardIdentity(NamedTuple):
    """What tells a shard from another one of the same name, wherever it lies."""

    size: int
    """Bytes."""
    head: str
    """Digest of the first 64 KiB."""


def shard_identity(shard: str) -> ShardIdentity:
    """Size and beginning of a shard; (0, "") where there is no such file."""
    fs, path = fsspec.core.url_to_fs(shard)
    if not fs.exists(path):
        return ShardIdentity(0, "")
    with fs.open(path, "rb") as file:
        head = hashlib.blake2b(file.read(65_536), digest_size=8).hexdigest()
    return ShardIdentity(int(fs.size(path) or 0), head)


def finished(store: FeatureStore, shard: str) -> PartMetadata | None:
    """The part already made from this shard, if there is one.

    Raises:
        FeatureStoreError: a part of this name was made from another shard.
    """
    part = store.part_path(shard_name(shard))
    if not store.fs.exists(part):
        return None
    metadata = store.metadata(part)
    size, head = shard_identity(shard)
    if metadata.source_bytes == size and metadata.source_head in ("", head):
        return metadata
    if metadata.damaged:  # it has been fetched again since
        return None
    raise FeatureStoreError(
        f"{part} was made from {metadata.source} ({metadata.source_bytes:,} bytes), and {shard} "
        f"({size:,} bytes) has the same name but other content. Rename the shard, or use another "
        "store."
    )


class Extractor:
    """Turns shards into parts with one backbone; callable and testable without a cluster."""

    def __init__(self, backbone: Backbone, store: FeatureStore, *, threads: int = 2) -> None:
        """Take a loaded backbone, and `threads` for decoding."""
        self.backbone = backbone
        self.store = store
        self.config = store.manifest.extraction
        self.threads = threads

    def __call__(self, shard: str) -> ShardRecord:
        """Extract one shard, unless its part is there.

        Errors of rows are kept in the store; what is raised concerns the store or the machine.
        """
        done = finished(self.store, shard)
        if done is not None:
            return ShardRecord(shard, done.rows, done.errors, done.seconds, skipped=True)
        started = time.perf_counter()
        writer = PartWriter(self.store, shard_name(shard))
        with ThreadPoolExecutor(self.threads) as pool:
            # The next pictures are decoded while the backbone sees these.
            for batch in prefetched(self._batches(shard, pool)):
                for entry in batch:
                    if isinstance(entry, _Failure):
                        writer.fail(*entry)
                prepared = [entry for entry in batch if isinstance(entry, _Prepared)]
                if prepared:
                    self._add(prepared, writer)
        seconds = time.perf_counter() - started
        damaged = any(failure["stage"] == "read" for failure in writer.failures)
        size, head = shard_identity(shard)
        writer.commit(
            PartMetadata(
                source=shard,
                source_bytes=size,
                rows=writer.rows,
                errors=len(writer.failures),
                seconds=seconds,
                damaged=damaged,
                source_head=head,
            )
        )
        return ShardRecord(shard, writer.rows, len(writer.failures), seconds)

    def _batches(
        self, shard: str, pool: ThreadPoolExecutor
    ) -> Iterator[list[_Prepared | _Failure]]:
        """Pictures of the shard as the backbone takes them, in their order."""
        samples = _read(shard)
        while batch := list(islice(samples, self.config.batch_size)):
            yield list(pool.map(self._prepare, batch))

    def _prepare(self, sample: Sample | _Failure) -> _Prepared | _Failure:
        """Decode and transform, or say at which stage that failed and why."""
        if isinstance(sample, _Failure):
            return sample
        key, source = sample.key, sample.source
        try:
            if sample.image is None:
                raise ImageError(f"{key} has no picture; a .jpg, .png or .webp is needed.")
            image = open_image(sample.image, max_pixels=self.config.max_pixels)
        except ImageError as error:
            return _Failure(key, source, "decode", error)
        if not sample.captions:
            error = CaptionError(f"{key} has no caption, or empty ones only.")
            return _Failure(key, source, "caption", error)
        return _Prepared(sample, self.backbone.transform(image), image.size)

    @torch.inference_mode()
    def _add(self, prepared: Sequence[_Prepared], writer: PartWriter) -> None:
        """Backbone, pooling and draws for one batch, into the writer."""
        device = self.backbone.device
        images = torch.stack([p.tensor for p in prepared]).to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            features = self.backbone(images)
        columns: dict[str, Any] = {}
        for layer, layer_features in features.items():
            columns[f"feature.{layer}"] = self._pooled(layer, layer_features.map.float(), prepared)
            if self.store.manifest.class_tokens:
                assert layer_features.class_token is not None
                columns[f"class_token.{layer}"] = layer_features.class_token.float().cpu().numpy()
        good = np.ones(len(prepared), dtype=bool)
        for values in columns.values():
            flat = np.abs(values.reshape(len(prepared), -1))
            good &= (flat <= HALF_MAX).all(axis=1)  # False for NaN, too
        for keep, entry in zip(good, prepared, strict=True):
            if not keep:
                reason = DataError("features are not finite in float16")
                writer.fail(entry.sample.key, entry.sample.source, "backbone", reason)
        rows = [entry for keep, entry in zip(good, prepared, strict=True) if keep]
        if rows:
            columns = {name: values[good] for name, values in columns.items()}
            columns["key"] = [row.sample.key for row in rows]
            columns["captions"] = [list(row.sample.captions) for row in rows]
            columns["width"] = [row.size[0] for row in rows]
            columns["height"] = [row.size[1] for row in rows]
            writer.add(columns)

    def _pooled(self, layer: str, feature_map: Tensor, prepared: Sequence[_Prepared]) -> np.ndarray:
        """The clean mean and the dropout draws (row, 1 + draws, channels), or the maps."""
        if self.config.mode == "maps":
            return feature_map.cpu().numpy()
        pooled = [mean_pool(feature_map)[:, None]]
        if self.config.draws:
            locations = feature_map.shape[2] * feature_map.shape[3]
            masks = [
                dropout_masks(
                    self.config.draws,
                    locations,
                    self.config.feature_dropout,
                    row_generator(self.config.seed, f"{layer}|{entry.sample.key}"),
                )
                for entry in prepared
            ]
            pooled.append(masked_mean(feature_map, torch.stack(masks).to(feature_map.device)))
        return torch.cat(pooled, dim=1).cpu().numpy()


def _read(shard: str) -> Iterator[Sample | _Failure]:
    """Samples of the shard; damage to the shard itself is a failure without a key."""
    try:
        yield from read_shard(shard)
    except DataError as error:
        yield _Failure("", shard, "read", error)
