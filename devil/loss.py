"""The training loss: next-token cross-entropy of captions that continue a prefix.

The input is ``[BOS, prefix × n, caption, EOS]``; caption and EOS are the labels. Captions
of one image share their prefix, which is computed once, and stand packed in one row; a language
model that cannot be packed gets one row for each caption, and the prefix's keys and values. The
head runs on label positions only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devil.language_model import LanguageModel
from devil.packing import FILLING, pack


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
    predict = _packed if language_model.packs else _one_by_one
    hidden, labels = predict(language_model, prefix, captions, each)
    total = F.cross_entropy(language_model.logits(hidden), labels, reduction="sum")
    return CaptionLoss(total, len(labels))


def _packed(
    language_model: LanguageModel,
    prefix: Float[Tensor, "batch prefix hidden"],
    captions: Sequence[Sequence[int]],
    each: int,
) -> tuple[Float[Tensor, "label hidden"], Int[Tensor, "label"]]:
    """Hidden states that predict a label, and the labels: an image's captions in one row."""
    device, eos = prefix.device, language_model.eos
    groups = [captions[start : start + each] for start in range(0, len(captions), each)]
    packed = pack(groups, eos, device)
    start = language_model.start(prefix)
    before = start.shape[1]
    hidden = language_model.hidden(
        torch.cat([start, language_model.embed(packed.ids)], dim=1),
        attention_mask=packed.mask(before),
        position_ids=packed.positions(before),
        use_cache=False,
    ).last_hidden_state
    # The prefix's last position predicts each caption's first token; each token the one behind it.
    first = [(row, ids[0]) for row, group in enumerate(groups) for ids in group if ids]
    rows, ids = torch.tensor(first, dtype=torch.long).reshape(-1, 2).to(device).unbind(1)
    behind = pack([[[*ids[1:], eos] for ids in group if ids] for group in groups], eos, device).ids
    real = packed.owner != FILLING
    return (
        torch.cat([hidden[rows, before - 1], hidden[:, before:][real]]),
        torch.cat([ids, behind[real]]),
    )


def _one_by_one(
    language_model: LanguageModel,
    prefix: Float[Tensor, "batch prefix hidden"],
    captions: Sequence[Sequence[int]],
    each: int,
) -> tuple[Float[Tensor, "label hidden"], Int[Tensor, "label"]]:
    """The same with one row for each caption, behind the keys and values of its prefix."""
    labels, real = pad_captions(captions, language_model.eos, prefix.device)
    start = language_model.hidden(language_model.start(prefix), use_cache=True)
    hidden = start.last_hidden_state[:, -1:].repeat_interleave(each, dim=0)
    cache = start.past_key_values
    if each > 1:
        cache.batch_repeat_interleave(each)
    if labels.shape[1] > 1:
        # Padding stands behind the caption, where causal attention cannot see it.
        rest = language_model.hidden(
            language_model.embed(labels[:, :-1]), past_key_values=cache, use_cache=True
        )
        hidden = torch.cat([hidden, rest.last_hidden_state], dim=1)
    return hidden[real], labels[real]
