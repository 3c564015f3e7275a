"""Caption scores of a model on stored features, layer by layer, each beside its control.

The control `shuffled` describes every picture by the features of another one: what a fluent
language model scores when it sees nothing of the picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from devil.batches import HeldOut
from devil.config import DecodingConfig
from devil.decoding import greedy_captions
from devil.evaluation.captioning import CaptionScores, caption_scores
from devil.explanation import Caption
from devil.model import DeViL
from devil.types import ALL_LAYERS


@dataclass(frozen=True, kw_only=True)
class StoredEvaluation:
    """Scores by layer (`all` first), and those of all layers on shuffled features."""

    layers: Mapping[str, CaptionScores]
    shuffled: CaptionScores
    captions: Mapping[str, Mapping[str, str]]
    """Per layer, key → caption."""

    def cider(self) -> dict[str, float]:
        """CIDEr by layer."""
        return {layer: scores.cider for layer, scores in self.layers.items()}


def evaluate_stored(
    model: DeViL,
    rows: HeldOut,
    *,
    layers: Sequence[str] | None = None,
    decoding: DecodingConfig | None = None,
    seed: int = 0,
) -> StoredEvaluation:
    """Describe rows of a feature store from all layers and from each alone, and score that."""
    layers = (ALL_LAYERS, *model.layers) if layers is None else tuple(layers)
    references = dict(zip(rows.keys, rows.references, strict=True))
    captions = {}
    for layer in layers:
        features = {slot: rows.features[slot] for slot in model.slots(layer)}
        captions[layer] = describe_rows(model, rows.keys, features, decoding)
    every = {slot: rows.features[slot] for slot in model.slots(ALL_LAYERS)}
    other = derangement(len(rows.keys), seed)
    wrong = describe_rows(model, rows.keys, {s: v[other] for s, v in every.items()}, decoding)
    return StoredEvaluation(
        layers={layer: caption_scores(texts, references) for layer, texts in captions.items()},
        shuffled=caption_scores(wrong, references),
        captions=captions,
    )


def describe_rows(
    model: DeViL,
    keys: Sequence[str],
    features: Mapping[str, Tensor],
    decoding: DecodingConfig | None = None,
) -> dict[str, str]:
    """Key → caption, from feature vectors by slot."""
    written: list[Caption] = greedy_captions(model.language_model, model.prefix(features), decoding)
    return {key: caption.text for key, caption in zip(keys, written, strict=True)}


def derangement(count: int, seed: int) -> Tensor:
    """A permutation that leaves no row in place (for two rows or more): a shuffled cycle."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    result = torch.empty_like(order)
    result[order] = order.roll(1)
    return result
