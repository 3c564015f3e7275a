"""Open-vocabulary saliency: how likely a query's text is after the prefix of each location.

DeViL (arXiv 2309.01617): ``s(i, j) = Σ_t log p(q_t | f(g(x)_ij), q_<t)``, without EOS and
without length normalisation. The prefix runs once; queries continue its keys and values, all of
them packed into one row. A one-token query without a prompt needs nothing beyond the prefix: the
same pass scores the vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devil.errors import QueryError
from devil.language_model import ANCHOR, LanguageModel
from devil.memory import head_rows
from devil.prefill import Prefill, distinct, prefill, prefills
from devil.trie import ROOT, TokenTrie

Calibration = Literal["none", "pmi", "mean", "contrast"]
CALIBRATIONS: tuple[str, ...] = get_args(Calibration)
WIDEST = 64
"""Tokens packed behind a prefix after which a new pass is begun: each sees a mask that wide."""


class Query(NamedTuple):
    """A query's token ids, and those of the prompt that it is conditioned on."""

    text: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]


def tokenize_queries(
    language_model: LanguageModel, queries: Sequence[str], *, prompt: str = ""
) -> list[Query]:
    """Token ids of queries as they stand inside a sentence, after `prompt` if there is one.

    Raises:
        QueryError: a query has no tokens, does not fit the context, or is given twice.
    """
    if len(set(queries)) < len(queries):
        raise QueryError(f"queries {list(queries)} name one twice; give each once.")
    pairs = [language_model.query_ids(query, prompt=prompt) for query in queries]
    return [
        Query(text, tuple(before), tuple(ids))
        for text, (before, ids) in zip(queries, pairs, strict=True)
    ]


@torch.inference_mode()
def query_log_probabilities(
    language_model: LanguageModel,
    prefix: Float[Tensor, "batch prefix hidden"],
    queries: Sequence[Query],
    *,
    batch_size: int = 512,
    memory_gb: float | None = None,
) -> Float[Tensor, "batch query"]:
    """Σ_t log p(q_t | prefix, prompt, q_<t) in nats, for each prefix and query.

    Args:
        batch_size, memory_gb: see `devil.config.DecodingConfig`; they change no result.
    """
    rows, places = distinct(prefix)
    plan = plan_queries(language_model, queries)
    parts = [
        continue_with_queries(language_model, state, plan)
        for state in prefills(
            language_model,
            rows,
            plan.room,
            step=plan.room,
            batch_size=batch_size,
            memory_gb=memory_gb,
        )
    ]
    if not parts:
        return prefix.new_zeros(len(prefix), len(queries))
    return torch.cat(parts)[places]


class Pass(NamedTuple):
    """Queries that run through the language model together, packed behind each prefix."""

    trie: TokenTrie
    asked: tuple[int, ...]
    """Nodes whose next token is scored."""
    terms: tuple[tuple[int, int, int], ...]
    """Terms of the sum: (query, place of its node in `asked`, scored token)."""


class Plan(NamedTuple):
    """How queries are scored."""

    queries: tuple[Query, ...]
    passes: tuple[Pass, ...]
    """Empty where the language model cannot be packed: then one query after another."""

    @property
    def room(self) -> int:
        """Positions needed behind a prefix."""
        if self.passes:
            return max(len(step.trie) for step in self.passes)
        return max((len(q.prompt_ids) + len(q.ids) for q in self.queries), default=0)


def plan_queries(language_model: LanguageModel, queries: Sequence[Query]) -> Plan:
    """Put queries with their prompts into tries; what several begin with stands there once."""
    if not queries or not language_model.packs:
        return Plan(tuple(queries), ())
    passes = []
    trie, terms = TokenTrie(), []
    for number, query in enumerate(queries):
        path = trie.add([*query.prompt_ids, *query.ids[:-1]])[len(query.prompt_ids) :]
        terms += [(number, node, token) for node, token in zip(path, query.ids, strict=True)]
        if len(trie) >= WIDEST:
            passes.append(_pass(trie, terms))
            trie, terms = TokenTrie(), []
    if terms:
        passes.append(_pass(trie, terms))
    return Plan(tuple(queries), tuple(passes))


def _pass(trie: TokenTrie, terms: Sequence[tuple[int, int, int]]) -> Pass:
    asked = {node: place for place, node in enumerate(sorted({node for _, node, _ in terms}))}
    return Pass(trie, tuple(asked), tuple((q, asked[node], token) for q, node, token in terms))


@torch.inference_mode()
def continue_with_queries(
    language_model: LanguageModel, state: Prefill, plan: Plan
) -> Float[Tensor, "batch query"]:
    """Scores of queries behind prefixes that have been run; leaves their state as it was.

    Args:
        state: with the plan's room.
    """
    batch, device = state.last.shape[0], state.last.device
    if not plan.passes or not state.packs:
        return _one_by_one(language_model, state, plan.queries)
    scores: Tensor | None = None
    for step in plan.passes:
        hidden = _packed(language_model, state, step)
        owner, place, token = torch.tensor(step.terms, device=device).unbind(1)
        found = log_probabilities(language_model, hidden, place, token)
        if scores is None:
            scores = found.new_zeros(batch, len(plan.queries))
        scores.index_add_(1, owner, found)
    assert scores is not None
    return scores


def _packed(
    language_model: LanguageModel, state: Prefill, step: Pass
) -> Float[Tensor, "batch asked hidden"]:
    """Hidden states of the nodes whose next token is scored."""
    trie, device = step.trie, state.last.device
    states = state.last[:, None]
    if len(trie):
        batch, before = state.last.shape[0], state.cache.get_seq_length()
        embeddings = language_model.embed(torch.tensor(trie.ids, device=device))
        output = language_model.hidden(
            embeddings.expand(batch, -1, -1),
            attention_mask=trie.mask(before).to(device).expand(batch, 1, -1, -1),
            position_ids=trie.positions(before).to(device).expand(batch, -1),
            past_key_values=state.cache,
            use_cache=True,
        )
        state.cache.crop(-len(trie))
        states = torch.cat([states, output.last_hidden_state], dim=1)
    return states[:, [node - ROOT for node in step.asked]]


def log_probabilities(
    language_model: LanguageModel,
    hidden: Float[Tensor, "batch asked hidden"],
    place: Int[Tensor, "term"],
    token: Int[Tensor, "term"],
) -> Float[Tensor, "batch term"]:
    """log p of some tokens after the hidden states at some places, in parts that stay small."""
    at_once, asked = head_rows(language_model), hidden.shape[1]
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    found = hidden.new_empty(len(hidden), len(token), dtype=dtype)
    rows = max(1, at_once // asked)
    for part, scores in zip(hidden.split(rows), found.split(rows), strict=True):
        for start in range(0, asked, at_once):
            logits = language_model.logits(part[:, start : start + at_once])
            here = ((place >= start) & (place < start + at_once)).nonzero()[:, 0]
            terms = place[here] - start
            normaliser = logits.logsumexp(dim=-1)
            scores[:, here] = logits[:, terms, token[here]] - normaliser[:, terms]
    return found


def _one_by_one(
    language_model: LanguageModel, state: Prefill, queries: Sequence[Query]
) -> Float[Tensor, "batch query"]:
    """The same for a language model that cannot be packed: one query continues the cache."""
    batch, device = state.last.shape[0], state.last.device
    columns = []
    for query in queries:
        ids = [*query.prompt_ids, *query.ids[:-1]]
        states = state.last[:, None]
        if ids:
            states = torch.cat([states, continued_with(language_model, state, ids)], dim=1)
            states = states[:, len(query.prompt_ids) :]
        token = torch.tensor(query.ids, device=device)
        place = torch.arange(len(token), device=device)
        columns.append(log_probabilities(language_model, states, place, token).sum(dim=1))
    if not columns:
        return state.last.new_zeros(batch, 0)
    return torch.stack(columns, dim=1)


def continued_with(
    language_model: LanguageModel, state: Prefill, ids: Sequence[int]
) -> Float[Tensor, "batch token hidden"]:
    """Hidden states of a text behind each prefix; leaves their state as it was."""
    given = torch.tensor(ids, device=state.last.device)
    embeddings = language_model.embed(given).expand(state.last.shape[0], -1, -1)
    output = language_model.hidden(embeddings, past_key_values=state.cache, use_cache=True)
    state.cache.crop(-len(ids))
    return output.last_hidden_state


@torch.inference_mode()
def vocabulary_log_probabilities(
    language_model: LanguageModel,
    prefix: Float[Tensor, "batch prefix hidden"],
    *,
    prompt: str = "",
) -> Float[Tensor, "batch vocab"]:
    """log p of every token right after each prefix, and a prompt if given, from one pass."""
    before = prompt_ids(language_model, prompt)
    state = prefill(language_model, prefix, len(before))
    hidden = behind(language_model, state, before)
    return language_model.logits(hidden).log_softmax(dim=-1)


def prompt_ids(language_model: LanguageModel, prompt: str) -> list[int]:
    """Token ids of a text that stands before words."""
    return language_model.query_ids(ANCHOR, prompt=prompt)[0] if prompt.strip() else []


def behind(
    language_model: LanguageModel, state: Prefill, ids: Sequence[int]
) -> Float[Tensor, "batch hidden"]:
    """Hidden state behind each prefix and a text, which may be empty."""
    return continued_with(language_model, state, ids)[:, -1] if ids else state.last


def calibrate(
    scores: Float[Tensor, "batch query"],
    queries: Sequence[Query],
    calibration: Calibration,
    baseline: Callable[[], Float[Tensor, "1 query"]],
) -> Float[Tensor, "batch query"]:
    """Take the language model's own preferences out of the scores.

    Args:
        scores: log-probabilities in nats.
        queries: in the scores' order.
        calibration: `none`; `pmi`: minus the score for the layer's mean feature over the training
            set; `mean`: per token; `contrast`: minus the log of the other queries' mean
            probability.
        baseline: computes the scores for the mean feature; called for `pmi` only.

    Raises:
        QueryError: the calibration is unknown, or `contrast` has nothing to contrast with.
    """
    check_calibration(calibration, len(queries))
    if calibration == "none":
        return scores
    if calibration == "pmi":
        return scores - baseline()
    if calibration == "mean":
        return scores / torch.tensor([len(q.ids) for q in queries], device=scores.device)
    count = len(queries)
    own = torch.eye(count, dtype=torch.bool, device=scores.device)
    others = scores[:, None, :].expand(-1, count, -1).masked_fill(own, -torch.inf)
    return scores - (others.logsumexp(dim=2) - math.log(count - 1))


def check_calibration(calibration: str, queries: int) -> None:
    """Whether so many queries can be calibrated in this way.

    Raises:
        QueryError: the calibration is unknown, or `contrast` has nothing to contrast with.
    """
    if calibration not in CALIBRATIONS:
        raise QueryError(f"calibration is {calibration!r}; allowed: {', '.join(CALIBRATIONS)}.")
    if calibration == "contrast" and queries == 1:
        raise QueryError("calibration 'contrast' needs at least two queries; give another.")
