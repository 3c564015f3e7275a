"""The prefix's keys and values, computed once: what decoding, sampling and saliency continue.

The beginning-of-text token stands before every prefix, so its keys and values are computed once for
a language model and copied into each row.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from devil.cache import ReservedCache, reserved_cache
from devil.language_model import LanguageModel
from devil.memory import batch_rows


class Prefill(NamedTuple):
    """A language model's state after some prefixes."""

    last: Float[Tensor, "batch hidden"]
    """Hidden state at the prefix's last position: the head turns it into the first token."""
    cache: Any
    """Keys and values of all positions, of transformers' `Cache` type."""

    @property
    def packs(self) -> bool:
        """Whether sequences can be packed behind it (if the model packs at all)."""
        return isinstance(self.cache, ReservedCache)


@torch.inference_mode()
def prefill(
    language_model: LanguageModel,
    prefix: Float[Tensor, "batch prefix hidden"],
    room: int,
    *,
    rows: int | None = None,
    reuse: Prefill | None = None,
) -> Prefill:
    """Run the language model on ``[BOS, prefix]`` with room for a continuation.

    Args:
        language_model: the frozen LM.
        prefix: one prefix for each row.
        room: tokens that will be written behind the prefix at most.
        rows: rows to reserve memory for; default: the prefix's.
        reuse: state of an earlier batch, made with no less room and rows, whose memory is taken
            over; it cannot be continued any more.
    """
    rows = max(rows or 0, prefix.shape[0])
    beginning = language_model.beginning
    before = prefix.shape[1] + (language_model.bos is not None)
    if reuse is not None and isinstance(reuse.cache, ReservedCache):
        cache = reuse.cache
        cache.begin()
    else:
        cache = reserved_cache(language_model.model.config, rows, before + room)
    if cache is None or beginning is None:
        embeddings = language_model.start(prefix)
    else:
        embeddings = language_model.cast(prefix)
        for layer, (keys, values) in zip(cache.layers, beginning, strict=True):
            layer.update(  # type: ignore[union-attr]
                *(states.expand(prefix.shape[0], -1, -1, -1) for states in (keys, values))
            )
    output = language_model.hidden(embeddings, past_key_values=cache, use_cache=True)
    return Prefill(output.last_hidden_state[:, -1], output.past_key_values)


def prefills(
    language_model: LanguageModel,
    prefix: Float[Tensor, "row prefix hidden"],
    room: int,
    *,
    step: int = 1,
    batch_size: int,
    memory_gb: float | None = None,
) -> Iterator[Prefill]:
    """The states of all rows, in batches that fit the memory; each is used before the next.

    Args:
        step: most tokens of a row that will run through the model at once behind the prefix.
        batch_size, memory_gb: see `devil.memory.batch_rows`.
    """
    if not len(prefix):
        return
    before = prefix.shape[1] + (language_model.bos is not None)
    size = batch_rows(
        language_model,
        before=before,
        room=room,
        step=step,
        batch_size=batch_size,
        memory_gb=memory_gb,
    )
    state = None
    for rows in prefix.split(size):
        state = prefill(language_model, rows, room, reuse=state)
        yield state


class Distinct(NamedTuple):
    """Rows without repetitions."""

    rows: Float[Tensor, "distinct prefix hidden"]
    places: list[int]
    """Where each of the original rows now is."""


def distinct(prefix: Float[Tensor, "row prefix hidden"]) -> Distinct:
    """Leave out rows that equal another to the last bit: images share borders and plain areas."""
    if not prefix.numel():
        return Distinct(prefix, list(range(len(prefix))))
    flat = prefix.detach().flatten(1).contiguous().view(torch.uint8).cpu().numpy()
    found: dict[bytes, int] = {}
    keys = (hashlib.blake2b(row.data, digest_size=16).digest() for row in flat)
    places = [found.setdefault(key, len(found)) for key in keys]
    if len(found) == len(prefix):
        return Distinct(prefix, places)
    first = dict(zip(reversed(places), reversed(range(len(places))), strict=True))
    return Distinct(prefix[[first[place] for place in range(len(found))]], places)
