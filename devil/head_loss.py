"""Cross-entropy behind a frozen head, without the logits of a whole batch.

``loss = Σ_i logsumexp(W h_i) − (W h_i)[y_i]`` and ``∂loss/∂h_i = (softmax(W h_i) − e_{y_i}) W`` are
computed together, some rows at a time. That is possible because the head is frozen and the loss a
plain sum: its gradient is known as soon as the logits are, up to one factor. As in "Cut Your
Losses" (arXiv 2411.09009) memory no longer grows with rows × vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from devil.language_model import LanguageModel
from devil.packed_weights import is_linear

CHUNK_BYTES = {"cpu": 2**21, "cuda": 2**30}
"""Size of one chunk's logits in float32: on a CPU, what its cache holds."""
CHUNK_ROWS = 128
"""Rows that a chunk has at least, for the sake of the matrix product."""


def label_loss(
    language_model: LanguageModel,
    hidden: Float[Tensor, "label hidden"],
    labels: Int[Tensor, "label"],
) -> Tensor:
    """Summed cross-entropy of labels given the hidden states that predict them, in nats.

    Heads that scale or cap their logits, or that are no plain matrix, take the direct way.
    """
    head = language_model.model.get_output_embeddings()
    if not _plain(language_model, head):
        return F.cross_entropy(language_model.logits(hidden), labels, reduction="sum")
    return _FrozenHeadLoss.apply(hidden, head.weight, head.bias, labels)  # type: ignore[return-value]


def _plain(language_model: LanguageModel, head: Any) -> bool:
    config = language_model.model.config
    changed = getattr(config, "logits_scaling", None) or getattr(
        config, "final_logit_softcapping", None
    )
    return (
        is_linear(head)
        and not changed
        and not any(parameter.requires_grad for parameter in head.parameters())
    )


class _FrozenHeadLoss(torch.autograd.Function):
    """Summed cross-entropy of ``hidden @ weight.T + bias``; only `hidden` has a gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
    ) -> Tensor:
        kind = hidden.device.type
        dtype = weight.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            total, gradient = _loss_and_gradient(
                hidden.to(dtype),
                weight.to(dtype),
                None if bias is None else bias.to(dtype),
                labels,
                ctx.needs_input_grad[0],
            )
        ctx.dtype = hidden.dtype
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * gradients[0]).to(ctx.dtype), None, None, None


def _loss_and_gradient(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """The sum over labels, and its gradient by `hidden` if it is wanted."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    total = torch.zeros((), dtype=wide, device=hidden.device)
    gradient = torch.empty_like(hidden) if wanted else None
    size = CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cuda"])
    chunk = max(CHUNK_ROWS, size // (len(weight) * wide.itemsize))
    count = min(chunk, len(hidden))
    logits = hidden.new_empty(count, len(weight))
    table = logits.new_empty(logits.shape, dtype=wide)  # both are used again by each chunk
    for first in range(0, len(hidden), chunk):
        # On a CPU the last chunk is as large as the others, whose kernels it can use again: it
        # takes in rows that have been counted.
        start = min(first, len(hidden) - count) if hidden.device.type == "cpu" else first
        rows, asked = hidden[start : start + chunk], labels[start : start + chunk, None]
        scores, found = logits[: len(rows)], table[: len(rows)]
        torch.mm(rows, weight.T, out=scores)
        if bias is not None:
            scores += bias
        torch.log_softmax(scores, -1, dtype=wide, out=found)
        total -= found.gather(1, asked)[first - start :].sum()
        if gradient is not None:
            found.exp_().scatter_add_(1, asked, -torch.ones_like(asked, dtype=wide))
            probabilities = found if wide == scores.dtype else scores.copy_(found)
            torch.mm(probabilities, weight, out=gradient[start : start + chunk])
    return total, gradient
