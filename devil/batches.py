"""Feature store → training batches, in an order that is a pure function of the step.

An epoch visits the parts in a random order, in chunks that fit in memory, each chunk's rows in a
random order. Batches, captions, draws and hidden tokens follow from (seed, step), so a resumed run
sees what an uninterrupted one would have seen, and any number of workers share one global batch.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from devil.chunks import Chunk, ChunkReader
from devil.config import TrainingConfig
from devil.errors import CaptionError, FeatureStoreError
from devil.features import FeatureStore, columns_of
from devil.held_out import HeldOut, Split, clean_rows, clean_vectors
from devil.language_model import LanguageModel
from devil.model import SlotStatistics
from devil.pooling import dropout_masks, masked_mean, mean_pool
from devil.translator import slots_of, token_dropout


class Batch(NamedTuple):
    """One worker's share of a step."""

    step: int
    features: dict[str, Tensor]
    """Per slot (batch, channels), float32."""
    captions: list[list[int]]
    """Token ids; `captions_per_image` for each row, in the rows' order."""
    visible: Tensor
    """(batch, slot): which slots token dropout leaves."""
    global_tokens: int
    """Labels in the whole step over all workers, by which the loss is divided."""

    def pinned(self) -> "Batch":
        """The same with features in page-locked memory, from which a GPU copies on its own."""
        return self._replace(features={s: v.pin_memory() for s, v in self.features.items()})


class TrainingBatches:
    """Batches of a feature store for one worker out of `world`."""

    def __init__(
        self,
        store: FeatureStore,
        language_model: LanguageModel,
        config: TrainingConfig,
        *,
        class_tokens: bool = False,
        layers: Sequence[str] = (),
        parts: Sequence[str] = (),
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Choose the held-out rows, for which the keys of all parts are read once.

        Args:
            store: the features.
            language_model: tokenises the captions.
            config: batch size, seed, and what else decides a batch.
            class_tokens: feed class tokens, too.
            layers: subset of the store's layers; empty: all.
            parts: names of the parts that are trained on, for the store may grow while workers
                start again; empty: all.
            rank, world: which share of each global batch this worker takes.

        Raises:
            FeatureStoreError: no rows to train on, or the store lacks a layer or class tokens.
        """
        self.store, self.lm, self.config = store, language_model, config
        self.rank, self.world = rank, world
        self.layers = tuple(layers) or tuple(store.manifest.layers)
        self.slots = stored_slots(store, self.layers, class_tokens=class_tokens)
        self.class_tokens = class_tokens
        self.parts = [f"{store.path}/{name}" for name in parts] or store.parts()
        self.split = Split(store, self.parts, config.validation_rows)
        self.count = sum(self.split.training.values())
        if not self.count:
            raise FeatureStoreError(
                f"{store.root} has no rows to train on: {len(self.parts)} parts, "
                f"{len(self.split.keys)} keys held out; extract features, or hold out fewer."
            )
        if min(self.count, config.batch_size) < world:
            raise FeatureStoreError(
                f"{self.count} rows in batches of {config.batch_size} are too few for {world} "
                "workers; use fewer workers, or a larger batch_size."
            )
        columns = columns_of(self.slots, self.layers)
        limit = config.max_caption_tokens
        self._chunk = ChunkReader(store, language_model, self.split, columns, limit)

    def epoch_steps(self, epoch: int) -> int:
        """Steps in which every row is visited once, but for rests smaller than a batch."""
        return sum(map(self._steps, self._groups(self._order(epoch).permutation(len(self.parts)))))

    def __call__(self, start: int, stop: int) -> Iterator[Batch]:
        """This worker's batches of steps `start` to `stop` − 1."""
        step = start
        epoch, offset = self._position(start)
        while step < stop:
            for rows, parts in self._epoch(epoch, offset):
                yield self._batch(step, rows, self._chunk(parts))
                step += 1
                if step == stop:
                    return
            epoch, offset = epoch + 1, 0

    def whole(self) -> "TrainingBatches":
        """The same for a single worker, whose share is all of each batch."""
        result = copy.copy(self)
        result.rank, result.world = 0, 1
        return result

    def keys(self, step: int) -> list[str]:
        """Keys of this worker's rows in a step, in their order; reads them from the store."""
        rows, parts = next(self._epoch(*self._position(step)))
        keys = self._chunk.keys(parts)
        return [keys[row] for row in rows[self.rank :: self.world]]

    def _position(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and how many steps of that epoch come before it."""
        epoch = 0
        while step >= (length := self.epoch_steps(epoch)):
            step, epoch = step - length, epoch + 1
        return epoch, step

    def _order(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, 1, epoch])

    def _epoch(self, epoch: int, offset: int) -> Iterator[tuple[np.ndarray, tuple[str, ...]]]:
        """Row numbers of each global batch from batch `offset` on, in a chunk of some parts."""
        rng, size = self._order(epoch), self.config.batch_size
        for parts in self._groups(rng.permutation(len(self.parts))):
            order = rng.permutation(self._count(parts))
            steps = self._steps(parts)
            for index in range(offset, steps):
                yield order[index * size : (index + 1) * size], parts
            offset = max(0, offset - steps)

    def _count(self, parts: Sequence[str]) -> int:
        return sum(self.split.training[part] for part in parts)

    def _steps(self, parts: Sequence[str]) -> int:
        return max(1, self._count(parts) // self.config.batch_size)

    def _groups(self, order: np.ndarray) -> list[tuple[str, ...]]:
        """Parts in their order, cut into groups that fit in memory and hold a batch or more."""
        size = self.config.batch_size
        groups: list[list[str]] = [[]]
        for part in (self.parts[index] for index in order):
            held = self._count(groups[-1])
            if held >= size and held + self.split.training[part] > self.config.chunk_rows:
                groups.append([])
            groups[-1].append(part)
        if len(groups) > 1 and self._count(groups[-1]) < size:
            rest = groups.pop()
            groups[-1] += rest
        return [tuple(sorted(group)) for group in groups]

    def _batch(self, step: int, rows: np.ndarray, chunk: Chunk) -> Batch:
        config = self.config
        rng = np.random.default_rng([config.seed, 2, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        captions = [_choose(chunk.captions[row], config.captions_per_image, rng) for row in rows]
        visible = token_dropout(
            len(rows),
            len(self.layers),
            config.token_dropout,
            generator,
            class_tokens=self.class_tokens,
        )
        tokens = sum(len(ids) + 1 for row in captions for ids in row if ids)
        features = self._vectors(chunk, rows, rng, generator)
        mine = slice(self.rank, None, self.world)
        return Batch(
            step=step,
            features={slot: vectors[mine] for slot, vectors in features.items()},
            captions=[ids for row in captions[mine] for ids in row],
            visible=visible[mine],
            global_tokens=max(1, tokens),
        )

    def _vectors(
        self,
        chunk: Chunk,
        rows: np.ndarray,
        rng: np.random.Generator,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """One pooled vector per row and slot: a stored draw, a fresh one of a map, or clean."""
        extraction = self.store.manifest.extraction
        dropout = self.config.feature_dropout
        draws = extraction.draws if extraction.mode == "pooled" and dropout else 0
        pick = rng.integers(1, draws + 1, len(rows)) if draws else np.zeros(len(rows), int)
        result = {}
        for slot in self.slots:
            stored = chunk.columns[slot]
            if stored.ndim == 2:  # a class token
                values = torch.from_numpy(stored[rows]).float()
            elif stored.ndim == 3:
                values = torch.from_numpy(stored[rows, pick]).float()
            elif not dropout:
                values = mean_pool(torch.from_numpy(stored[rows]).float())
            else:
                maps = torch.from_numpy(stored[rows]).float()
                p, locations = extraction.feature_dropout, maps.shape[2] * maps.shape[3]
                masks = dropout_masks(len(rows), locations, p, generator)[:, None]
                values = masked_mean(maps, masks)[:, 0]
            result[slot] = values
        return result

    def held_out(self) -> HeldOut:
        """The rows that training never sees, with clean features."""
        return clean_rows(self.store, self.layers, self.class_tokens, self.split.held_out)

    def statistics(self) -> dict[str, SlotStatistics]:
        """Mean and deviation of each slot's clean features over one chunk of training rows."""
        chunk = self._chunk(self._groups(np.arange(len(self.parts)))[0])
        result = {}
        for slot in self.slots:
            clean = clean_vectors(chunk.columns[slot]).double()
            std = clean.std(dim=0) if len(clean) > 1 else torch.ones(clean.shape[1])
            result[slot] = SlotStatistics(clean.mean(dim=0).float(), std.float())
        return result


def stored_slots(
    store: FeatureStore, layers: Sequence[str], *, class_tokens: bool
) -> tuple[str, ...]:
    """Slots of some layers of a store.

    Raises:
        FeatureStoreError: the store lacks one of them.
    """
    slots = slots_of(layers, class_tokens=class_tokens)
    missing = sorted(set(slots) - set(store.manifest.slots()))
    if missing:
        raise FeatureStoreError(
            f"{store.root} has no features for {missing}; it has: "
            f"{', '.join(store.manifest.slots())}."
        )
    return slots


def check_captions(store: FeatureStore, lm: LanguageModel, config: TrainingConfig) -> None:
    """Look for one caption that can be trained on, from the first rows on.

    Raises:
        CaptionError: all captions are empty or longer than `max_caption_tokens`.
    """
    for part in store.parts():
        for texts in store.read(part, ["captions"]).column("captions").to_pylist():
            for text in texts:
                with contextlib.suppress(CaptionError):
                    lm.caption_ids(text, limit=config.max_caption_tokens)
                    return
    raise CaptionError(
        f"{store.root}: every caption is empty or has more than max_caption_tokens = "
        f"{config.max_caption_tokens} tokens; raise that, or shorten the captions."
    )


def _choose(
    captions: Sequence[Sequence[int]], count: int, rng: np.random.Generator
) -> list[list[int]]:
    """`count` of an image's captions in random order, each again only when all were taken.

    An image whose captions were all left out gives empty ones, which carry no label.
    """
    if not captions:
        return [[] for _ in range(count)]
    order = np.concatenate(
        [rng.permutation(len(captions)) for _ in range(-(-count // len(captions)))]
    )
    return [list(captions[i]) for i in order[:count]]
