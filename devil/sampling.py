"""Samples out of one prefix, which is computed once: top-p (nucleus) sampling, seeded.

Samples that have said the same so far share a row of the language model until they part, and those
that have ended leave. Each sample has random numbers of its own, so that neither the batch nor the
memory changes what is said. Top-p: arXiv 1904.09751; with TExplain's settings (arXiv 2309.00733).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devil.decoding import captions_of, check_length
from devil.errors import ConfigError
from devil.explanation import Caption
from devil.language_model import LanguageModel
from devil.memory import batch_rows, head_rows
from devil.prefill import Prefill, prefill

CANDIDATES = 64
"""Likeliest tokens looked at first; eight times as many where they do not reach top-p."""


@torch.inference_mode()
def sample_captions(
    language_model: LanguageModel,
    prefix: Float[Tensor, "prefix hidden"],
    n: int,
    *,
    top_p: float = 0.9,
    temperature: float = 1.0,
    max_new_tokens: int = 20,
    seed: int = 0,
    batch_size: int = 512,
    memory_gb: float | None = None,
) -> list[Caption]:
    """Draw n texts that continue one prefix.

    Args:
        language_model: the frozen LM.
        prefix: the prefix's embeddings.
        n: how many samples.
        top_p: each token is drawn out of the likeliest ones that together reach this probability.
        temperature: logits are divided by it.
        max_new_tokens: longest sample.
        seed: the same seed gives the same samples.
        batch_size, memory_gb: see `devil.config.DecodingConfig`; they change no result.

    Returns:
        One caption per sample. `log_probability` is that of its tokens under the language model
        itself (temperature 1, all tokens), in nats.

    Raises:
        ConfigError: a value is out of range, or the samples exceed the LM's context.
    """
    _check(n, top_p, temperature, max_new_tokens)
    check_length(language_model, len(prefix), max_new_tokens)
    size = batch_rows(
        language_model,
        before=len(prefix) + (language_model.bos is not None),
        room=max_new_tokens,
        step=1,
        batch_size=batch_size,
        memory_gb=memory_gb,
    )
    chance = uniforms(n, max_new_tokens, seed).to(prefix.device)
    state, captions = None, []
    for part in chance.split(size):
        state = prefill(language_model, prefix[None], max_new_tokens, rows=size, reuse=state)
        captions += _sample(language_model, state, part, top_p, temperature)
    return captions


def uniforms(n: int, longest: int, seed: int) -> Float[Tensor, "sample token"]:
    """The random numbers in [0, 1) that decide each token of each sample."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, longest, generator=generator, dtype=torch.float64)


def _check(n: int, top_p: float, temperature: float, longest: int) -> None:
    for name, value, right, allowed in (
        ("n", n, n >= 0, "at least 0"),
        ("top_p", top_p, 0 < top_p <= 1, "(0, 1]"),
        ("temperature", temperature, temperature > 0, "above 0"),
        ("max_new_tokens", longest, longest >= 1, "at least 1"),
    ):
        if not right:
            raise ConfigError(f"{name} is {value}; allowed: {allowed}.")


def _sample(
    language_model: LanguageModel,
    state: Prefill,
    chance: Float[Tensor, "sample token"],
    top_p: float,
    temperature: float,
) -> list[Caption]:
    (count, longest), device = chance.shape, chance.device
    tokens = torch.full((count, longest), language_model.eos, device=device)
    scores = torch.zeros(count, dtype=torch.float64, device=device)
    lengths = torch.zeros(count, dtype=torch.long, device=device)
    alive = torch.arange(count, device=device)
    row = torch.zeros(count, dtype=torch.long, device=device)
    hidden, cache = state.last, state.cache
    for step in range(longest):
        token, score = _draw(language_model, hidden, row, chance[alive, step], top_p, temperature)
        tokens[alive, step] = token
        scores[alive] += score.double()
        lengths[alive] += 1
        going = (token != language_model.eos).nonzero()[:, 0]
        if step + 1 == longest or not len(going):
            break
        alive = alive[going]
        parting = _part(row[going], token[going], language_model.vocabulary)
        row = parting.row
        cache.batch_select_indices(parting.source)
        output = language_model.hidden(
            language_model.embed(parting.token[:, None]), past_key_values=cache, use_cache=True
        )
        hidden = output.last_hidden_state[:, -1]
    return captions_of(language_model, tokens.tolist(), scores.tolist(), lengths.tolist())


class Parting(NamedTuple):
    """How rows split up when the samples that share them say different tokens."""

    source: Int[Tensor, "row"]
    """Row out of which each new row comes."""
    token: Int[Tensor, "row"]
    """What each new row says."""
    row: Int[Tensor, "sample"]
    """New row of each sample."""


def _part(row: Int[Tensor, "sample"], token: Int[Tensor, "sample"], vocabulary: int) -> Parting:
    """One new row for each pair of row and token; as many as can stay where they are."""
    pairs, pair = torch.unique(row * vocabulary + token, return_inverse=True)
    source, said = pairs // vocabulary, pairs % vocabulary
    count = len(pairs)
    stays = source < count
    stays[1:] &= source[1:] != source[:-1]  # a row's first continuation stays in its place
    free = torch.ones(count, dtype=torch.bool, device=row.device)
    free[source[stays]] = False
    place = torch.empty_like(source)
    place[stays] = source[stays]
    place[~stays] = free.nonzero()[:, 0]
    order = torch.argsort(place)
    return Parting(source[order], said[order], place[pair])


class Drawn(NamedTuple):
    """What each sample says next, and its log-probability under the language model."""

    token: Int[Tensor, "sample"]
    score: Float[Tensor, "sample"]


def _draw(
    language_model: LanguageModel,
    hidden: Float[Tensor, "row hidden"],
    row: Int[Tensor, "sample"],
    chance: Float[Tensor, "sample"],
    top_p: float,
    temperature: float,
) -> Drawn:
    """Draw a token for each sample from the distribution of its row."""
    token = torch.empty_like(row)
    score = torch.empty(len(row), dtype=torch.float64, device=row.device)
    size = head_rows(language_model)
    for start in range(0, len(hidden), size):
        logits = language_model.logits(hidden[start : start + size])
        here = ((row >= start) & (row < start + size)).nonzero()[:, 0]
        drawn = _nucleus(logits, row[here] - start, chance[here], top_p, temperature)
        token[here], score[here] = drawn.token, drawn.score
    return Drawn(token, score)


def _nucleus(
    logits: Float[Tensor, "row vocab"],
    row: Int[Tensor, "sample"],
    chance: Float[Tensor, "sample"],
    top_p: float,
    temperature: float,
) -> Drawn:
    """Draw from each row's likeliest tokens, as many as make every row reach top-p.

    A candidate takes 28 bytes, and `devil.memory` counts 16 for a logit, of which it takes 4:
    where candidates are many, some rows are drawn from at a time.
    """
    vocabulary, normaliser = logits.shape[1], logits.logsumexp(dim=1)
    tempered = normaliser if temperature == 1 else (logits / temperature).logsumexp(dim=1)
    count = min(CANDIDATES if top_p < 1 else vocabulary, vocabulary)
    token, start = torch.empty_like(row), 0
    while start < len(logits):
        size = max(1, logits.numel() // (3 * count))
        rows = slice(start, start + size)
        here = ((row >= start) & (row < start + size)).nonzero()[:, 0]
        inverse = _inverse(
            logits[rows], tempered[rows], row[here] - start, chance[here], count, top_p, temperature
        )
        if inverse is None:
            count, start = min(8 * count, vocabulary), 0
        else:
            token[here] = inverse
            start += size
    return Drawn(token, logits[row, token].double() - normaliser[row].double())


def _inverse(
    logits: Float[Tensor, "row vocab"],
    tempered: Float[Tensor, "row"],
    row: Int[Tensor, "sample"],
    chance: Float[Tensor, "sample"],
    count: int,
    top_p: float,
    temperature: float,
) -> Int[Tensor, "sample"] | None:
    """The inverse of each row's cumulative distribution over its likeliest tokens.

    None if those do not reach top-p in some row.
    """
    values, ids = logits.topk(count, dim=1)
    share = (values / temperature).sub_(tempered[:, None]).double().exp_()
    total = share.cumsum(dim=1)
    if count < logits.shape[1] and not bool((total[:, -1] >= top_p).all()):
        return None
    kept = torch.sub(total, share, out=share).lt_(top_p).sum(dim=1).long()
    mass = total.gather(1, kept[:, None] - 1)
    # Rows lie behind one another, two units apart, so that one search serves all of them.
    shift = 2 * torch.arange(len(logits), device=logits.device, dtype=torch.float64)
    line = total.div_(mass).clamp_(max=1).add_(shift[:, None]).flatten()
    found = torch.searchsorted(line, chance + shift[row], right=True) - row * count
    return ids[row, found.minimum(kept[row] - 1)]
