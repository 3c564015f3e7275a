"""The training loss: next-token cross-entropy of captions that continue a prefix.

The input is ``[BOS, prefix × n, caption, EOS]``; caption and EOS are the labels. Captions
of one image share their prefix, and all stand in one row (`caption_attention`); a language model
that cannot run so gets one row for each caption, in groups of similar length. The head
runs on label positions only, and its gradient is computed with its loss (`head_loss`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devil.caption_attention import caption_layout, length_groups, run_layout
from devil.head_loss import label_loss
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
    each, rest = divmod(len(captions), prefix.shape[0])
    assert each >= 1 and rest == 0, (len(captions), prefix.shape[0])
    if _runs_together(language_model, prefix.shape[1], captions):
        hidden, labels = _together(language_model, prefix, captions)
    else:
        hidden, labels = _one_by_one(language_model, prefix, captions, each)
    return CaptionLoss(label_loss(language_model, hidden, labels), len(labels))


def _runs_together(
    language_model: LanguageModel, prefix: int, captions: Sequence[Sequence[int]]
) -> bool:
    """Whether one row can hold all; checkpointed layers would run again outside of it."""
    longest = 1 + prefix + max(map(len, captions))
    return (
        language_model.attends_by_caption
        and longest <= language_model.attention_window
        and not language_model.model.is_activation_checkpointing
    )


def _together(
    language_model: LanguageModel,
    prefix: Float[Tensor, "batch prefix hidden"],
    captions: Sequence[Sequence[int]],
) -> tuple[Float[Tensor, "label hidden"], Int[Tensor, "label"]]:
    """Hidden states that predict a label, and the labels: all captions in one row."""
    layout = caption_layout(
        captions,
        prefix.shape[0],
        bos=language_model.bos,
        eos=language_model.eos,
        prefix=prefix.shape[1],
    ).to(prefix.device)
    words = language_model.embed(layout.ids)
    hidden = run_layout(language_model.model.base_model, words, prefix, layout)
    return hidden.index_select(0, layout.predicting), layout.labels


def _one_by_one(
    language_model: LanguageModel,
    prefix: Float[Tensor, "batch prefix hidden"],
    captions: Sequence[Sequence[int]],
    each: int,
) -> tuple[Float[Tensor, "label hidden"], Int[Tensor, "label"]]:
    """The same with one row for each caption; rows of similar length run together."""
    start = language_model.start(prefix)
    lengths = [start.shape[1] + len(ids) for ids in captions]
    states, found = [], []
    for group in length_groups(lengths):
        labels, real = pad_captions([captions[i] for i in group], language_model.eos, prefix.device)
        images = torch.tensor(group, device=prefix.device) // each
        # Padding stands behind the caption, where causal attention cannot see it.
        embeddings = torch.cat([start[images], language_model.embed(labels[:, :-1])], dim=1)
        hidden = language_model.hidden(embeddings, use_cache=False).last_hidden_state
        states.append(hidden[:, start.shape[1] - 1 :][real])
        found.append(labels[real])
    return torch.cat(states), torch.cat(found)
