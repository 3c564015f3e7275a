"""Rows of a feature store to measure on: which ones, with clean features and all captions."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from devil.features import FeatureStore, column_of, tensor_column
from devil.pooling import mean_pool
from devil.translator import slots_of


class HeldOut(NamedTuple):
    """Rows kept out of training."""

    keys: list[str]
    features: dict[str, Tensor]
    """Clean features per slot (row, channels)."""
    references: list[list[str]]


def held_out_keys(keys: Mapping[str, Sequence[str]], count: int) -> frozenset[str]:
    """The `count` keys with the smallest hashes: the same ones whatever the parts' order.

    Args:
        keys: of each part.
        count: how many; at most half of all.
    """
    every = {key for ks in keys.values() for key in ks}
    count = min(count, len(every) // 2)

    def hashed(key: str) -> bytes:
        return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()

    return frozenset(sorted(every, key=hashed)[:count])


def clean_rows(
    store: FeatureStore,
    layers: Sequence[str],
    class_tokens: bool,
    keys: frozenset[str] | None = None,
) -> HeldOut:
    """Clean features and captions of some rows of a store, or of all."""
    slots = slots_of(layers, class_tokens=class_tokens)
    names = {slot: column_of(slot, layers) for slot in slots}
    found: list[str] = []
    references: list[list[str]] = []
    features: dict[str, list[Tensor]] = {slot: [] for slot in slots}
    for part in store.parts():
        every = store.read(part, ["key"]).column("key").to_pylist()
        rows = [i for i, key in enumerate(every) if keys is None or key in keys]
        if not rows:
            continue
        table = store.read(part, ["captions", *names.values()]).take(pa.array(rows, pa.int64()))
        found += [every[i] for i in rows]
        references += table.column("captions").to_pylist()
        for slot, name in names.items():
            features[slot].append(clean_vectors(tensor_column(table, name)))
    return HeldOut(found, {s: torch.cat(v) for s, v in features.items() if v}, references)


def clean_vectors(stored: np.ndarray) -> Tensor:
    """Class tokens as they are, the clean mean of pooled rows, the mean of maps."""
    values = stored[:, 0] if stored.ndim == 3 else stored
    tensor = torch.from_numpy(values.astype(np.float32))
    return mean_pool(tensor) if tensor.ndim == 4 else tensor
