"""One shard of captioned pictures → one part of a feature store.

``read → decode → transform → backbone → pool and draw → write``; a row that fails at any stage goes
to `errors` with the stage and the reason. The shard is the unit of work, and its rows depend on
their keys and the seed alone, so workers, restarts and batches change nothing.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from devil.backbones import Backbone
from devil.data.sample import Failure, Sample
from devil.data.shard import Shard
from devil.data.source import Source
from devil.errors import CaptionError, DataError, ImageError
from devil.features import FeatureStore, PartMetadata
from devil.images import open_image
from devil.part_writer import PartWriter
from devil.pooling import dropout_masks, masked_mean, mean_pool, row_generator
from devil.prefetching import prefetched
from devil.shard_progress import finished

HALF_MAX = float(np.finfo(np.float16).max)


class ShardRecord(NamedTuple):
    """What became of one shard; `skipped` when it was done before."""

    shard: str
    rows: int
    errors: int
    seconds: float
    skipped: bool = False
    failed: Mapping[str, int] = {}
    """Error rows by stage and reason."""
    stages: Mapping[str, float] = {}
    """Seconds of each stage; stages run beside each other, so the sum is more than `seconds`."""

    @classmethod
    def of(cls, shard: Shard, part: PartMetadata, *, skipped: bool) -> "ShardRecord":
        """What a finished part says."""
        counts = (part.rows, part.errors, part.seconds)
        return cls(shard.name, *counts, skipped, part.failed, part.stages)


class _Prepared(NamedTuple):
    sample: Sample
    tensor: Tensor
    size: tuple[int, int]


def _changed(shard: Shard) -> Failure:
    """Damage to a shard that was still being written while it was read."""
    error = DataError(f"{shard.address} has changed while it was read; extract it again.")
    return Failure.of("", shard.address, "read", error)


class Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started

    def rounded(self) -> dict[str, float]:
        """Milliseconds are enough."""
        return {stage: round(seconds, 3) for stage, seconds in self.seconds.items()}


class Extractor:
    """Turns shards into parts with one backbone; callable and testable without a cluster."""

    def __init__(
        self, backbone: Backbone, source: Source, store: FeatureStore, *, threads: int = 2
    ) -> None:
        """Take a loaded backbone, where shards are read and written, and `threads` for decoding."""
        self.backbone = backbone
        self.source = source
        self.store = store
        self.config = store.manifest.extraction
        self.threads = threads

    def __call__(self, shard: Shard) -> ShardRecord:
        """Extract one shard, unless its part is there.

        Errors of rows are kept in the store; what is raised concerns the store or the machine.
        """
        done = finished(self.store, self.source, shard)
        if done is not None:
            return ShardRecord.of(shard, done, skipped=True)
        started, watch = time.perf_counter(), Stopwatch()
        identity = self.source.identity(shard)
        with PartWriter(self.store, shard.name) as writer:
            for batch in self._prepared(shard, watch):
                for failure in (entry for entry in batch if isinstance(entry, Failure)):
                    writer.fail(failure)
                good = [entry for entry in batch if isinstance(entry, _Prepared)]
                if good:
                    self._add(good, writer, watch)
            if self.source.identity(shard) != identity:
                writer.fail(_changed(shard))
            reasons = Counter(f"{f.stage} {f.error}" for f in writer.failures)
            part = PartMetadata(
                source=shard.address,
                source_bytes=identity.size,
                rows=writer.rows,
                errors=len(writer.failures),
                seconds=time.perf_counter() - started,
                damaged=any(failure.stage == "read" for failure in writer.failures),
                source_head=identity.head,
                failed=dict(reasons),
                stages=watch.rounded(),
            )
            writer.commit(part)
        return ShardRecord.of(shard, part, skipped=False)

    def rate(self, shard: Shard, rows: int) -> float:
        """Rows per second through all stages but writing, after a first batch that warms up.

        Args:
            shard: where the rows are taken from.
            rows: at most so many, in whole batches; 0 comes back if it has no second batch.
        """
        count, started, seconds = 0, 0.0, 0.0
        for batch in self._prepared(shard, Stopwatch()):
            good = [entry for entry in batch if isinstance(entry, _Prepared)]
            if good:
                self._features(good)
            if started:
                count += len(batch)
                seconds = time.perf_counter() - started
            else:
                started = time.perf_counter()
            if count >= rows:
                break
        return count / seconds if seconds else 0.0

    def _prepared(self, shard: Shard, watch: Stopwatch) -> Iterator[list[_Prepared | Failure]]:
        """Batches for the backbone; the next pictures are decoded while it sees these."""
        with ThreadPoolExecutor(self.threads) as pool:
            yield from prefetched(self._batches(shard, pool, watch))

    def _batches(
        self, shard: Shard, pool: ThreadPoolExecutor, watch: Stopwatch
    ) -> Iterator[list[_Prepared | Failure]]:
        """Pictures of the shard as the backbone takes them, in their order."""
        samples = self._read(shard, watch)
        while batch := list(islice(samples, self.config.batch_size)):
            with watch("decode"):
                prepared = list(pool.map(self._prepare, batch))
            yield prepared

    def _read(self, shard: Shard, watch: Stopwatch) -> Iterator[Sample | Failure]:
        """Rows of the shard; damage to the shard itself is a failure without a key."""
        seen: set[str] = set()
        rows = self.source.read(shard)
        while True:
            try:
                with watch("read"):
                    row = next(rows, None)
            except DataError as error:
                row, rows = Failure.of("", shard.address, "read", error), iter(())
            if row is None:
                return
            if isinstance(row, Sample) and row.key in seen:
                error = DataError(f"{row.key!r} occurs more than once in its shard.")
                row = Failure.of(row.key, row.source, "key", error)
            seen.add(row.key)
            yield row

    def _prepare(self, row: Sample | Failure) -> _Prepared | Failure:
        """Decode and transform, or say at which stage that failed and why."""
        if isinstance(row, Failure):
            return row
        key, source = row.key, row.source
        try:
            if row.image is None:
                raise ImageError(f"{key} has no picture; a .jpg, .png or .webp is needed.")
            image = open_image(row.image, max_pixels=self.config.max_pixels)
        except ImageError as error:
            return Failure.of(key, source, "decode", error)
        if not row.captions:
            error = CaptionError(f"{key} has no caption, or empty ones only.")
            return Failure.of(key, source, "caption", error)
        return _Prepared(row, self.backbone.transform(image), image.size)

    def _add(self, prepared: Sequence[_Prepared], writer: PartWriter, watch: Stopwatch) -> None:
        """Features of one batch, into the writer; what is not finite is an error row."""
        with watch("backbone"):
            columns: dict[str, Any] = dict(self._features(prepared))
        good = np.ones(len(prepared), dtype=bool)
        for values in columns.values():
            flat = np.abs(values.reshape(len(prepared), -1))
            good &= (flat <= HALF_MAX).all(axis=1)  # False for NaN, too
        for keep, entry in zip(good, prepared, strict=True):
            if not keep:
                reason = DataError("features are not finite in float16")
                sample = entry.sample
                writer.fail(Failure.of(sample.key, sample.source, "backbone", reason))
        rows = [entry for keep, entry in zip(good, prepared, strict=True) if keep]
        if not rows:
            return
        columns = {name: values[good] for name, values in columns.items()}
        columns["key"] = [row.sample.key for row in rows]
        columns["captions"] = [list(row.sample.captions) for row in rows]
        columns["width"] = [row.size[0] for row in rows]
        columns["height"] = [row.size[1] for row in rows]
        with watch("write"):
            writer.add(columns)

    @torch.inference_mode()
    def _features(self, prepared: Sequence[_Prepared]) -> dict[str, np.ndarray]:
        """Backbone, pooling and draws for one batch: columns of the store."""
        device = self.backbone.device
        images = torch.stack([p.tensor for p in prepared]).to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            features = self.backbone(images)
        columns: dict[str, np.ndarray] = {}
        for layer, layer_features in features.items():
            columns[f"feature.{layer}"] = self._pooled(layer, layer_features.map.float(), prepared)
            if self.store.manifest.class_tokens:
                assert layer_features.class_token is not None
                columns[f"class_token.{layer}"] = layer_features.class_token.float().cpu().numpy()
        return columns

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
