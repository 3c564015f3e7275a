"""Captions and scores of the same prefixes, from one pass over each of them."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from devil.config import DecodingConfig
from devil.decoding import check_length, continue_greedily
from devil.explanation import Caption
from devil.language_model import LanguageModel
from devil.prefill import Prefill, distinct, prefills
from devil.saliency import Plan, continue_with_queries


class Reading(NamedTuple):
    """What was read from prefixes."""

    captions: list[Caption]
    """Of the first rows."""
    scores: Float[Tensor, "scored query"] | None
    """Of the last rows; None where there are no queries."""


@torch.inference_mode()
def read_prefixes(
    language_model: LanguageModel,
    prefix: Float[Tensor, "row prefix hidden"],
    plan: Plan,
    config: DecodingConfig,
    *,
    captions: int,
    scored_from: int,
) -> Reading:
    """Decode the first `captions` rows, and score a plan's queries on those from `scored_from`.

    Raises:
        ConfigError: prefix and longest caption together exceed the LM's context, or the memory
            does not hold one row.
    """
    longest = config.max_new_tokens
    check_length(language_model, prefix.shape[1], longest)
    rows, places = distinct(prefix)
    decoded = len(set(places[:captions]))  # rows are in the order of their first places
    scored = set(places[scored_from:]) if plan.queries else set()
    written: list[Caption] = []
    parts: list[Tensor] = []
    done = 0
    for state in prefills(
        language_model,
        rows,
        max(longest, plan.room),
        step=max(plan.room, 1),
        batch_size=config.batch_size,
        memory_gb=config.memory_gb,
    ):
        batch = len(state.last)
        if plan.queries:
            wanted = not scored.isdisjoint(range(done, done + batch))
            empty = torch.zeros(batch, len(plan.queries), device=state.last.device)
            part = continue_with_queries(language_model, state, plan) if wanted else empty
            parts.append(part)
        if done < decoded:
            first = _first_rows(state, decoded - done)
            written += continue_greedily(language_model, first, longest)
        done += batch
    scores = torch.cat(parts)[places[scored_from:]] if parts else None
    return Reading([written[place] for place in places[:captions]], scores)


def _first_rows(state: Prefill, count: int) -> Prefill:
    if count >= len(state.last):
        return state
    state.cache.batch_select_indices(torch.arange(count, device=state.last.device))
    return state._replace(last=state.last[:count])
