"""Greedy decoding of prefixes into text, in batches, with the keys and values kept.

Rows that have ended leave the batch, so that a long caption does not make short ones wait, and rows
with the same prefix are decoded once. Tokens equal those of `generate(do_sample=False)` of
transformers.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from devil.cache import remaining
from devil.captured import PATIENCE, FixedGreedy, check_captured
from devil.config import DecodingConfig
from devil.errors import ConfigError
from devil.explanation import Caption
from devil.language_model import LanguageModel
from devil.likeliest import likeliest
from devil.prefill import Prefill, distinct, prefills


def greedy_captions(
    language_model: LanguageModel,
    prefix: Float[Tensor, "batch prefix hidden"],
    config: DecodingConfig | None = None,
) -> list[Caption]:
    """The likeliest next token, again and again, until the end of text.

    Args:
        language_model: the frozen LM.
        prefix: one prefix for each row.
        config: longest caption, batch size, memory, and whether steps are recorded.

    Returns:
        One caption per row. `log_probability` is the sum over its tokens in nats, `tokens` their
        number; both count the end of text where it was reached.

    Raises:
        ConfigError: prefix and longest caption together exceed the LM's context, the memory
            does not hold one row, or steps cannot be recorded.
    """
    config = config or DecodingConfig()
    check_length(language_model, prefix.shape[1], config.max_new_tokens)
    continued = continuation(language_model, config)
    rows, places = distinct(prefix)
    captions: list[Caption] = []
    for state in prefills(
        language_model,
        rows,
        config.max_new_tokens,
        batch_size=config.batch_size,
        memory_gb=config.memory_gb,
    ):
        captions += continued(state)
    return [captions[place] for place in places]


def check_length(language_model: LanguageModel, prefix: int, longest: int) -> None:
    """Whether a prefix of so many tokens and the longest caption fit the language model.

    Raises:
        ConfigError: together they exceed its context.
    """
    if prefix + longest + 1 > language_model.context:
        raise ConfigError(
            f"max_new_tokens is {longest}; with a prefix of {prefix} the "
            f"context of {language_model.context} tokens allows at most "
            f"{language_model.context - prefix - 1}."
        )


def continuation(
    language_model: LanguageModel, config: DecodingConfig
) -> Callable[[Prefill], list[Caption]]:
    """What writes captions behind prefixes that have been run, one batch after another.

    Raises:
        ConfigError: steps shall be recorded and cannot be.
    """
    longest = config.max_new_tokens
    if not config.captured:
        return lambda state: continue_greedily(language_model, state, longest)
    check_captured(language_model)
    fixed = FixedGreedy(language_model, longest, captured=True)
    return lambda state: captions_of(language_model, *(t.tolist() for t in fixed(state)))


@torch.inference_mode()
def continue_greedily(language_model: LanguageModel, state: Prefill, longest: int) -> list[Caption]:
    """Captions behind prefixes that have been run; uses up their state.

    Args:
        state: with room for `longest` tokens.
    """
    batch, device = state.last.shape[0], state.last.device
    tokens = torch.full((batch, longest), language_model.eos, device=device)
    scores = torch.zeros(batch, dtype=torch.float64, device=device)
    lengths = torch.zeros(batch, dtype=torch.long, device=device)
    active = torch.arange(batch, device=device)
    going = torch.ones(batch, dtype=torch.bool, device=device)
    patience = 1 if device.type == "cpu" else PATIENCE
    hidden, cache = state.last, state.cache
    for step in range(longest):
        token, log_probability = likeliest(language_model, hidden)
        token = token.masked_fill(~going, language_model.eos)
        tokens[active, step] = token
        scores[active] += log_probability.double() * going
        lengths[active] += going
        going &= token != language_model.eos
        if step + 1 == longest:
            break
        if (step + 1) % patience == 0:
            left = remaining(going)
            if not len(left):
                break
            if len(left) < len(active):
                active, token, going = active[left], token[left], going[left]
                cache.batch_select_indices(left)
        output = language_model.hidden(
            language_model.embed(token[:, None]), past_key_values=cache, use_cache=True
        )
        hidden = output.last_hidden_state[:, -1]
    return captions_of(language_model, tokens.tolist(), scores.tolist(), lengths.tolist())


def captions_of(
    language_model: LanguageModel,
    tokens: Sequence[Sequence[int]],
    scores: Sequence[float],
    lengths: Sequence[int],
) -> list[Caption]:
    """Each row's first tokens as a caption with its score; equal ones are put in words once."""
    texts: dict[tuple[int, ...], str] = {}
    captions = []
    for ids, score, length in zip(tokens, scores, lengths, strict=True):
        said = tuple(ids[:length])
        if said not in texts:
            texts[said] = language_model.text(said)
        captions.append(Caption(text=texts[said], log_probability=score, tokens=length))
    return captions
