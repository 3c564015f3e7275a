"""Rows of a feature store to measure on: which ones, with clean features and all captions."""

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from devil.features import FeatureStore, columns_of, tensor_column
from devil.pooling import mean_pool
from devil.storage import as_needed, in_threads
from devil.translator import slots_of


class HeldOut(NamedTuple):
    """Rows kept out of training."""

    keys: list[str]
    features: dict[str, Tensor]
    """Clean features per slot (row, channels)."""
    references: list[list[str]]


class Split:
    """Which rows of a store are trained on, and which are held out.

    Holds the held-out rows' keys and, of each part, a count: no more, however large the store is.

    Attributes:
        keys: of the held-out rows.
        held_out: numbers of each part's held-out rows, in their order; only parts that have some.
        training: how many rows of each part are trained on.
        sizes: how many rows each part has.
    """

    def __init__(self, store: FeatureStore, parts: Sequence[str], count: int) -> None:
        """Hold out the keys with the smallest hashes: the same ones whatever the parts' order.

        Args:
            store: the features. Its keys are read once, part by part, unless `count` is 0.
            parts: of the store.
            count: keys to hold out; at most half of all.

        Raises:
            FeatureStoreError: a part cannot be read.
        """
        sizes: dict[str, int] = {}
        if not count:
            footers = in_threads(store.metadata, parts)
            sizes = {part: found.rows for part, found in zip(parts, footers, strict=True)}

        def keys() -> Iterator[tuple[str, Sequence[str]]]:
            for part, found in zip(parts, as_needed(store.keys, parts), strict=True):
                sizes[part] = len(found)
                yield part, found

        places = held_out_places(keys(), count)
        self.keys = frozenset(places)
        self.held_out: dict[str, list[int]] = {}
        for part, row in sorted(place for found in places.values() for place in found):
            self.held_out.setdefault(part, []).append(row)
        self.training = {part: n - len(self.held_out.get(part, ())) for part, n in sizes.items()}
        self.sizes = sizes

    def rows(self, part: str) -> np.ndarray:
        """Numbers of a part's training rows, in their order."""
        return np.delete(np.arange(self.sizes[part]), self.held_out.get(part, []))


def held_out_places(
    parts: Iterable[tuple[str, Sequence[str]]], count: int
) -> dict[str, list[tuple[str, int]]]:
    """The keys to hold out, each with the parts and the numbers of all rows that bear it.

    Args:
        parts: their names and keys. Twice `count` keys are remembered while they pass by.
        count: keys to hold out; at most half of the distinct ones.
    """
    if not count:
        return {}
    seen: dict[tuple[bytes, str], list[tuple[str, int]]] = {}
    limit: tuple[bytes, str] | None = None  # what lies behind is not among the smallest
    for part, keys in parts:
        for row, key in enumerate(keys):
            hashed = (_hash(key), key)
            if limit is None or hashed <= limit:
                seen.setdefault(hashed, []).append((part, row))
        if len(seen) >= 2 * count:
            seen = {hashed: seen[hashed] for hashed in heapq.nsmallest(2 * count, seen)}
            limit = max(seen)
    smallest = heapq.nsmallest(min(count, len(seen) // 2), seen)
    return {key: seen[hashed, key] for hashed, key in smallest}


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def clean_rows(
    store: FeatureStore,
    layers: Sequence[str],
    class_tokens: bool,
    rows: Mapping[str, Sequence[int]] | None = None,
) -> HeldOut:
    """Clean features and captions of some rows of a store, or of all.

    Args:
        store: the features.
        layers: whose features.
        class_tokens: with their class tokens.
        rows: numbers of the rows of each part that has some; None: all.
    """
    columns = columns_of(slots_of(layers, class_tokens=class_tokens), layers)
    keys: list[str] = []
    references: list[list[str]] = []
    features: dict[str, list[Tensor]] = {slot: [] for slot in columns}
    for part in store.parts() if rows is None else sorted(rows):
        table = store.read(part, ["key", "captions", *columns.values()])
        if rows is not None:
            table = table.take(rows[part])
        if not table.num_rows:
            continue
        keys += table.column("key").to_pylist()
        references += table.column("captions").to_pylist()
        for slot, name in columns.items():
            features[slot].append(clean_vectors(tensor_column(table, name)))
    return HeldOut(keys, {s: torch.cat(v) for s, v in features.items() if v}, references)


def clean_vectors(stored: np.ndarray) -> Tensor:
    """Class tokens as they are, the clean mean of pooled rows, the mean of maps."""
    values = stored[:, 0] if stored.ndim == 3 else stored
    tensor = torch.from_numpy(values.astype(np.float32))
    return mean_pool(tensor) if tensor.ndim == 4 else tensor
