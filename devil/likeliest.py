"""The likeliest next token and how likely it is: what greedy decoding asks of the head."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devil.language_model import LanguageModel
from devil.memory import head_rows

CACHED_BYTES = 2**20
"""What a CPU's core has at hand."""


class Likeliest(NamedTuple):
    """The likeliest next token of each row and its log-probability in nats."""

    token: Int[Tensor, "batch"]
    log_probability: Float[Tensor, "batch"]


@torch.no_grad()
def likeliest(language_model: LanguageModel, hidden: Float[Tensor, "batch hidden"]) -> Likeliest:
    """The likeliest next token after each hidden state."""
    tokens, scores = [], []
    for rows in hidden.split(head_rows(language_model)):
        logits = language_model.logits(rows)
        best, token = logits.max(dim=-1)
        tokens.append(token)
        # In place, and on a CPU some rows at a time, so that they stay in its cache.
        size = len(rows)
        if logits.device.type == "cpu":
            size = max(1, CACHED_BYTES // (logits.shape[1] * logits.element_size()))
        for part, top in zip(logits.split(size), best.split(size), strict=True):
            scores.append(-part.sub_(top[:, None]).exp_().sum(dim=-1).log())
    return Likeliest(torch.cat(tokens), torch.cat(scores))
