"""The training loss: next-token cross-entropy of captions that continue a prefix.

SPEC §1 "LM input": ``[BOS, prefix × n, caption, EOS]``; caption and EOS are the labels. Captions
of one image share their prefix: its keys and values are computed once. The head runs on label
positions only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devil.language_model import LanguageModel


class CaptionLoss(NamedTuple):
    """Cross-entropy in nats, summed, and the number of labels it was summed over."""

    total: Tensor
    tokens: int

    @property
    def mean(self) -> Tensor:
        """Mean over labels, as the paper's loss."""
        return self.total / self.tokens


class PaddedCaptions(NamedTuple):
    """Captions as one rectangle: labels are each caption and its EOS; the rest is padding."""

    labels: Int[Tensor, "caption token"]
    real: Bool[Tensor, "caption token"]


def pad_captions(
    captions: Sequence[Sequence[int]], eos: int, device: torch.device
) -> PaddedCaptions:
    """Put captions of token ids, each followed by EOS, into one padded rectangle.

    An empty caption has no labels: its image is there for its place in the batch alone.
    """
    width = max(map(len, captions)) + 1
    rows = [[*ids, *[eos] * (width - len(ids))] for ids in captions]
    lengths = torch.tensor([len(ids) + 1 if ids else 0 for ids in captions])
    real = torch.arange(width) < lengths[:, None]
    return PaddedCaptions(torch.tensor(rows).to(device), real.to(device))


def caption_loss(
    language_model: LanguageModel,
    prefix: Float[Tensor, "batch prefix hidden"],
    captions: Sequence[Sequence[int]],
) -> CaptionLoss:
    """Cross-entropy of captions given prefixes.

    Args:
        language_model: the frozen LM.
        prefix: one prefix for each image.
        captions: token ids without BOS and EOS; the same number for each image, and an image's
            captions stand together.
    """
    batch = prefix.shape[0]
    each, rest = divmod(len(captions), batch)
    assert each >= 1 and rest == 0, (len(captions), batch)
    labels, real = pad_captions(captions, language_model.eos, prefix.device)
    start = language_model.hidden(language_model.start(prefix), use_cache=True)
    first = start.last_hidden_state[:, -1:].repeat_interleave(each, dim=0)
    cache = start.past_key_values
    if each > 1:
        cache.batch_repeat_interleave(each)
    if labels.shape[1] > 1:
        # Padding stands behind the caption, where causal attention cannot see it.
        rest_of = language_model.hidden(
            language_model.embed(labels[:, :-1]), past_key_values=cache, use_cache=True
        )
        hidden = torch.cat([first, rest_of.last_hidden_state], dim=1)
    else:
        hidden = first
    logits = language_model.logits(hidden[real])
    total = F.cross_entropy(logits, labels[real], reduction="sum")
    return CaptionLoss(total, int(real.sum()))
