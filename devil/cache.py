"""Keys and values of a causal language model, in memory that is reserved once and written in place.

The growing cache of transformers copies everything at each token. Here a token costs its own bytes,
going back costs nothing, and rows that leave or split move alone. The layers are subclasses of
transformers' own, so that any causal LM with plain attention takes them; others keep their cache.
A `FixedLayer` shows the same memory in a shape that never changes (`devil.captured`).
"""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class ReservedLayer(DynamicLayer):
    """One layer's keys and values, with memory for so many rows and positions.

    `keys` and `values` are views of what is filled: (row, head, position, channel).
    """

    def __init__(self, rows: int, room: int, *, sliding: bool = False) -> None:
        super().__init__()
        self.rows, self.room = rows, room
        self.filled, self.length = 0, 0
        self.is_sliding = sliding  # type: ignore[misc]  # the mask of such a layer is chosen by it
        self.reserved: tuple[Tensor, ...] = ()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Reserve the memory; the first keys and values tell heads, widths and type."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.reserved = tuple(
            states.new_empty(self.rows, states.shape[1], self.room, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new positions behind the others and return all of them, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        assert self.length <= self.room, (self.length, self.room)
        rows, added = key_states.shape[0], key_states.shape[2]
        # `narrow` costs a fifth of indexing, which counts at each token of each layer.
        for place, states in zip(self.reserved, (key_states, value_states), strict=True):
            place.narrow(0, 0, rows).narrow(2, start, added).copy_(states)
        return self._show(rows)

    def _show(self, rows: int) -> tuple[Tensor, Tensor]:
        keys, values = (p.narrow(0, 0, rows).narrow(2, 0, self.length) for p in self.reserved)
        self.keys, self.values, self.filled = keys, values, rows
        return keys, values

    def get_seq_length(self) -> int:
        """Positions filled."""
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last positions (a negative number, as in transformers)."""
        self.length -= abs(tokens_to_remove)
        self._show(self.filled)

    def begin(self) -> None:
        """Forget everything but keep the memory."""
        self.length = 0

    def batch_select_indices(self, indices: Int[Tensor, "row"]) -> None:
        """Row i becomes what row `indices[i]` was; only rows that change are moved."""
        self.move(*_moves(indices), len(indices))

    def move(self, sources: Int[Tensor, "moved"], targets: Int[Tensor, "moved"], rows: int) -> None:
        """Write some rows over others; the first `rows` rows are left."""
        if len(targets):
            for place in self.reserved:
                place[targets, :, : self.length] = place[sources, :, : self.length]
        self._show(rows)


class FixedLayer(DynamicLayer):
    """Some rows of a `ReservedLayer`'s memory, all positions at once, filled or not.

    What is not filled yet must be hidden by a mask, and must be finite.
    """

    def __init__(self, layer: ReservedLayer, rows: int, place: Int[Tensor, "1"]) -> None:
        """Take the memory of a layer that has been filled.

        Args:
            layer: whose memory it is.
            rows: the first ones are shown.
            place: where the next position is written; it changes on the device alone.
        """
        super().__init__()
        self.is_sliding = layer.is_sliding  # type: ignore[misc]
        self.place = place
        self.keys, self.values = (states.narrow(0, 0, rows) for states in layer.reserved)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one position and return all of them."""
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, self.place, key_states)
        self.values.index_copy_(2, self.place, value_states)
        return self.keys, self.values


class ReservedCache(Cache):
    """A cache of `ReservedLayer`s, for one batch after another."""

    def begin(self) -> None:
        """Forget everything but keep the memory."""
        for layer in self.layers:
            layer.begin()  # type: ignore[union-attr]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and positions that there is memory for."""
        layer: Any = self.layers[0]
        return layer.rows, layer.room

    def fixed(self, rows: int, place: Int[Tensor, "1"]) -> Cache:
        """The memory of the first rows as `FixedLayer`s."""
        return Cache(layers=[FixedLayer(layer, rows, place) for layer in self.layers])  # type: ignore[arg-type]

    def clear_rest(self) -> None:
        """Make all that is not filled finite."""
        for layer in self.layers:
            for states in layer.reserved:  # type: ignore[union-attr]
                states.narrow(2, layer.length, layer.room - layer.length).zero_()  # type: ignore[union-attr]

    def count(self, positions: int) -> None:
        """Take note of positions that `FixedLayer`s have written behind the others."""
        for layer in self.layers:
            layer.length += positions  # type: ignore[union-attr]

    def batch_select_indices(self, indices: Int[Tensor, "row"]) -> None:
        """Row i becomes what row `indices[i]` was, in all layers."""
        sources, targets = _moves(indices)
        for layer in self.layers:
            layer.move(sources, targets, len(indices))  # type: ignore[union-attr]


def remaining(going: Bool[Tensor, "batch"]) -> Int[Tensor, "left"]:
    """Which row stands where once those that ended have left: the last ones fill the gaps."""
    count = int(going.sum())
    order = torch.arange(count, device=going.device)
    order[~going[:count]] = going[count:].nonzero()[:, 0] + count
    return order


def _moves(indices: Int[Tensor, "row"]) -> tuple[Int[Tensor, "moved"], Int[Tensor, "moved"]]:
    """Where the rows that change come from, and where they go."""
    moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
    return indices[moved], moved


def reserved_cache(config: Any, rows: int, room: int) -> ReservedCache | None:
    """Memory for so many rows and positions; None where a layer is no plain attention.

    A sliding window that is never left is plain attention.

    Args:
        config: the language model's, of transformers.
        rows: largest batch.
        room: longest sequence.
    """
    layers = DynamicCache(config=config).layers
    kinds = [_is_plain(layer, room) for layer in layers]
    if not layers or not all(kinds):
        return None
    return ReservedCache(
        layers=[ReservedLayer(rows, room, sliding=_slides(layer)) for layer in layers]
    )


def _slides(layer: object) -> bool:
    return type(layer) is DynamicSlidingWindowLayer


def _is_plain(layer: Any, room: int) -> bool:
    return type(layer) is DynamicLayer or (_slides(layer) and room < layer.sliding_window)
