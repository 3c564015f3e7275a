"""Greedy decoding of prefixes into text, in batches, with the keys and values kept.

Rows that have ended leave the batch, so that a long caption does not make short ones wait. Tokens
equal those of `generate(do_sample=False)` of transformers.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from devil.config import DecodingConfig
from devil.errors import ConfigError
from devil.explanation import Caption
from devil.language_model import LanguageModel


def greedy_captions(
    language_model: LanguageModel,
    prefix: Float[Tensor, "batch prefix hidden"],
    config: DecodingConfig | None = None,
) -> list[Caption]:
    """The likeliest next token, again and again, until the end of text.

    Args:
        language_model: the frozen LM.
        prefix: one prefix for each row.
        config: longest caption and batch size.

    Returns:
        One caption per row. `log_probability` is the sum over its tokens in nats, `tokens` their
        number; both count the end of text where it was reached.

    Raises:
        ConfigError: prefix and longest caption together exceed the LM's context.
    """
    config = config or DecodingConfig()
    needed = prefix.shape[1] + config.max_new_tokens + 1
    if needed > language_model.context:
        raise ConfigError(
            f"max_new_tokens is {config.max_new_tokens}; with a prefix of {prefix.shape[1]} the "
            f"context of {language_model.context} tokens allows at most "
            f"{language_model.context - prefix.shape[1] - 1}."
        )
    captions: list[Caption] = []
    for start in range(0, prefix.shape[0], config.batch_size):
        rows = prefix[start : start + config.batch_size]
        captions += _greedy_batch(language_model, rows, config.max_new_tokens)
    return captions


@torch.inference_mode()
def _greedy_batch(
    language_model: LanguageModel, prefix: Float[Tensor, "batch prefix hidden"], longest: int
) -> list[Caption]:
    batch, device = prefix.shape[0], prefix.device
    tokens = torch.full((batch, longest), language_model.eos, device=device)
    scores = torch.zeros(batch, dtype=torch.float64, device=device)
    lengths = torch.zeros(batch, dtype=torch.long, device=device)
    active = torch.arange(batch, device=device)
    output = language_model.hidden(language_model.start(prefix), use_cache=True)
    cache = output.past_key_values
    for step in range(longest):
        logits = language_model.logits(output.last_hidden_state[:, -1])
        log_probability, token = logits.log_softmax(dim=-1).max(dim=-1)
        tokens[active, step] = token
        scores[active] += log_probability.double()
        lengths[active] += 1
        going = (token != language_model.eos).nonzero()[:, 0]
        if not len(going) or step + 1 == longest:
            break
        if len(going) < len(active):
            active, token = active[going], token[going]
            cache.batch_select_indices(going)
        output = language_model.hidden(
            language_model.embed(token[:, None]), past_key_values=cache, use_cache=True
        )
    return _captions(language_model, tokens.tolist(), scores.tolist(), lengths.tolist())


def _captions(
    language_model: LanguageModel,
    tokens: Sequence[Sequence[int]],
    scores: Sequence[float],
    lengths: Sequence[int],
) -> list[Caption]:
    rows = zip(tokens, scores, lengths, strict=True)
    return [
        Caption(text=language_model.text(ids[:length]), log_probability=score, tokens=length)
        for ids, score, length in rows
    ]
