"""Captions and scores of the same prefixes, from one pass over each of them; rows of drafts."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from devil.config import DecodingConfig
from devil.decoding import check_length, continuation
from devil.draft import Rows
from devil.explanation import Caption, WordScore
from devil.language_model import LanguageModel
from devil.model import DeViL
from devil.prefill import Prefill, distinct, prefills
from devil.saliency import Plan, continue_with_queries
from devil.vocabulary import read_vocabulary, word_scores


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
            does not hold one row, or steps shall be recorded and cannot be.
    """
    longest = config.max_new_tokens
    check_length(language_model, prefix.shape[1], longest)
    continued = continuation(language_model, config)
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
            written += continued(first)
        done += batch
    scores = torch.cat(parts)[places[scored_from:]] if parts else None
    return Reading([written[place] for place in places[:captions]], scores)


def _first_rows(state: Prefill, count: int) -> Prefill:
    if count >= len(state.last):
        return state
    state.cache.batch_select_indices(torch.arange(count, device=state.last.device))
    return state._replace(last=state.last[:count])


@torch.inference_mode()
def read_rows(model: DeViL, rows: Sequence[Rows], decoding: DecodingConfig) -> None:
    """Read rows of drafts that ask the same queries behind the same prompt.

    Raises:
        ConfigError: prefix and longest caption together exceed the LM's context, or the memory
            does not hold one row.
    """
    if not rows:
        return
    prefixes = _prefixes(model, rows, decoding)
    # In the order of `read_prefixes`: first what is only put in words, last what is only scored.
    order = sorted(range(len(rows)), key=lambda i: (not rows[i].of.captioned, rows[i].of.scored))
    order = [i for i in order if rows[i].of.captioned or rows[i].of.scored]
    captions: dict[int, Sequence[Caption]] = {}
    scores: dict[int, Tensor] = {}
    if order:
        captioned = [i for i in order if rows[i].of.captioned]
        scored = [i for i in order if rows[i].of.scored]
        total = sum(len(prefixes[i]) for i in order)
        reading = read_prefixes(
            model.language_model,
            torch.cat([prefixes[i] for i in order]),
            rows[0].draft.asked.plan,
            decoding,
            captions=sum(len(prefixes[i]) for i in captioned),
            scored_from=total - sum(len(prefixes[i]) for i in scored),
        )
        written = iter(reading.captions)
        for i in captioned:
            captions[i] = [next(written) for _ in prefixes[i]]
        if reading.scores is not None and scored:
            # At once: each part alone would wait for a GPU.
            parts = reading.scores.cpu().split([len(prefixes[i]) for i in scored])
            scores = dict(zip(scored, parts, strict=True))
    words = {
        i: _words(model, part, prefixes[i], decoding)
        for i, part in enumerate(rows)
        if part.of.worded
    }
    for i, part in enumerate(rows):  # last, so that what fails has read nothing
        part.draft.keep(part, captions.get(i), scores.get(i), words.get(i))


def _prefixes(
    model: DeViL, rows: Sequence[Rows], decoding: DecodingConfig
) -> list[Float[Tensor, "row prefix hidden"]]:
    """The prefixes of each part; those that show the same slots pass the translator together."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, part in enumerate(rows):
        groups.setdefault(tuple(part.of.vectors), []).append(i)
    found: dict[int, Tensor] = {}
    for slots, members in groups.items():
        vectors = [rows[i].vectors() for i in members]
        together = {slot: torch.cat([v[slot] for v in vectors]) for slot in slots}
        prefix = model.prefix(together, memory_gb=decoding.memory_gb)
        parts = prefix.split([rows[i].size for i in members])
        found |= dict(zip(members, parts, strict=True))
    return [found[i] for i in range(len(rows))]


def _words(
    model: DeViL, part: Rows, prefix: Tensor, decoding: DecodingConfig
) -> list[tuple[WordScore, ...]]:
    question = part.draft.asked.question
    readout = read_vocabulary(
        model.language_model,
        prefix,
        top=question.words,
        prompt=question.prompt,
        baseline=part.draft.word_baseline(part.of.layer),
        batch_size=decoding.batch_size,
        memory_gb=decoding.memory_gb,
    )
    return word_scores(model.language_model, readout)
