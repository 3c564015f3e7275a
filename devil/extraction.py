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
from devil.config import ExtractionConfig
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
from devil.types import LayerFeatures

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
        self,
        backbone: Backbone,
        source: Source,
        store: FeatureStore,
        config: ExtractionConfig | None = None,
        *,
        threads: int = 2,
    ) -> None:
        """Take a loaded backbone, and where shards are read and written.

        Args:
            backbone: sees the pictures.
            source: of the shards.
            store: where their parts go.
            config: how, if not as the store was begun; it may differ in the size of batches.
            threads: for decoding.
        """
        self.backbone = backbone
        self.source = source
        self.store = store
        self.config = config or store.manifest.extraction
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
        """Backbone, pooling and draws for one batch: columns of the store.

        To a GPU go the images, then, while it works on them, the draws of all layers; all columns
        come back at once.
        """
        device = self.backbone.device
        images = _sent(torch.stack([p.tensor for p in prepared]), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            features = self.backbone(images)
        masks = self._masks(features, [p.sample.key for p in prepared], device)
        columns: dict[str, Tensor] = {}
        for layer, layer_features in features.items():
            feature_map = layer_features.map.float()
            columns[f"feature.{layer}"] = self._pooled(feature_map, masks.get(layer))
            if self.store.manifest.class_tokens:
                assert layer_features.class_token is not None
                columns[f"class_token.{layer}"] = layer_features.class_token.float()
        return _fetched(columns)

    def _masks(
        self, features: Mapping[str, LayerFeatures], keys: Sequence[str], device: torch.device
    ) -> dict[str, Tensor]:
        """By layer, which locations each draw keeps: (row, draw, location); none if not drawn.

        A row's draws follow from the seed and its key alone. Random numbers of a GPU would depend
        on its kind and on the batch, so they are drawn on the CPU: some hundred bits a row.
        """
        config = self.config
        if config.mode == "maps" or not config.draws:
            return {}
        sizes = {layer: found.map.shape[2:].numel() for layer, found in features.items()}
        rows = [
            [
                dropout_masks(
                    config.draws,
                    locations,
                    config.feature_dropout,
                    row_generator(config.seed, f"{layer}|{key}"),
                )
                for layer, locations in sizes.items()
            ]
            for key in keys
        ]
        whole = _sent(torch.stack([torch.cat(row, dim=1) for row in rows]), device)
        parts = whole.split(list(sizes.values()), dim=2)
        return {layer: part.contiguous() for layer, part in zip(sizes, parts, strict=True)}

    def _pooled(self, feature_map: Tensor, masks: Tensor | None) -> Tensor:
        """The clean mean and the dropout draws (row, 1 + draws, channels), or the maps."""
        if self.config.mode == "maps":
            return feature_map
        clean = mean_pool(feature_map)[:, None]
        if masks is None:
            return clean
        return torch.cat([clean, masked_mean(feature_map, masks)], dim=1)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; a GPU copies out of page-locked memory, and nobody waits for it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _fetched(columns: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """On the CPU, in one copy, for which alone a GPU is waited for."""
    flat = torch.cat([values.flatten(1) for values in columns.values()], dim=1).cpu()
    parts = flat.split([values[0].numel() for values in columns.values()], dim=1)
    return {
        name: part.reshape(values.shape).numpy()
        for (name, values), part in zip(columns.items(), parts, strict=True)
    }
