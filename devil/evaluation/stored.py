"""Caption scores of a model on stored features, layer by layer, each beside its controls.

What a score is worth is its distance to the controls: the same model on another picture's features
or on the mean feature, and captions that need no model at all.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from devil.batches import stored_slots
from devil.config import DecodingConfig
from devil.decoding import greedy_captions
from devil.errors import DataError, FeatureStoreError
from devil.evaluation.bert_scores import BertScoreConfig
from devil.evaluation.captioning import QUICK, CaptionScores, caption_scores
from devil.evaluation.controls import most_frequent_caption, nearest_captions
from devil.explanation import Caption
from devil.features import FeatureStore
from devil.held_out import HeldOut, clean_rows
from devil.model import DeViL
from devil.types import ALL_LAYERS

logger = logging.getLogger(__name__)

SHUFFLED = "shuffled"
"""Every picture described by the features of another one, from all layers."""
MEAN = "mean_feature"
"""Every picture described by the training set's mean features, from all layers."""
NEAREST = "nearest_training_photo"
"""A caption of the training photo whose features of the last layer are most similar."""
FREQUENT = "most_frequent_caption"
"""The training set's most frequent caption, for every picture."""
CONTROLS = (SHUFFLED, MEAN, NEAREST, FREQUENT)


@dataclass(frozen=True, kw_only=True)
class StoredEvaluation:
    """Scores by layer (`all` first) and by control."""

    layers: Mapping[str, CaptionScores]
    controls: Mapping[str, CaptionScores]
    captions: Mapping[str, Mapping[str, str]]
    """Per layer, key → caption."""

    @property
    def shuffled(self) -> CaptionScores:
        """The control that needs nothing but the rows themselves."""
        return self.controls[SHUFFLED]

    def cider(self) -> dict[str, float]:
        """CIDEr by layer."""
        return {layer: scores.cider for layer, scores in self.layers.items()}


def stored_rows(model: DeViL, store: FeatureStore) -> HeldOut:
    """All rows of a store, with the clean features that the model reads.

    Raises:
        FeatureStoreError: the store holds features of another backbone, or lacks a layer.
    """
    found, wanted = store.manifest.backbone_digest, model.backbone_digest
    if found != wanted:
        raise FeatureStoreError(
            f"{store.root} holds features of {store.manifest.backbone.name} (weights {found}); the "
            f"model was trained for {model.backbone_config.name} (weights {wanted}). Extract "
            "features with the model's backbone."
        )
    class_tokens = model.translator.config.class_tokens
    stored_slots(store, model.layers, class_tokens=class_tokens)
    return clean_rows(store, model.layers, class_tokens)


def stored_keys(store: FeatureStore) -> set[str]:
    """Keys of all rows of a store."""
    return {key for part in store.parts() for key in store.keys(part)}


def warn_of_shared_rows(held_out: FeatureStore, train: FeatureStore) -> int:
    """Say so when pictures that are scored were trained on; returns how many there are."""
    ours = stored_keys(held_out)
    shared = sorted({key for part in train.parts() for key in train.keys(part) if key in ours})
    if shared:
        logger.warning(
            "%d of %d pictures of %s are in %s, too (%s, ...): scores on them flatter; "
            "give a store of other pictures",
            *(len(shared), len(ours), held_out.root, train.root, shared[0]),
        )
    return len(shared)


class StoredCaptions(NamedTuple):
    """What is said of every row: by layer (`all` first) or control, key → caption."""

    layers: dict[str, dict[str, str]]
    controls: dict[str, dict[str, str]]


def describe_stored(
    model: DeViL,
    rows: HeldOut,
    *,
    layers: Sequence[str] | None = None,
    controls: Sequence[str] = (SHUFFLED,),
    train: HeldOut | None = None,
    decoding: DecodingConfig | None = None,
    seed: int = 0,
) -> StoredCaptions:
    """Describe rows of a feature store from all layers and from each alone, and by the controls.

    Args:
        model: Translator and language model; a backbone is not needed.
        rows: What is described; never trained on.
        layers: Subset of `all` and the model's layers; None: all of these.
        controls: Which of `CONTROLS`.
        train: The training set, for `NEAREST` and `FREQUENT`.
        decoding: Of the captions.
        seed: Of the shuffling.

    Raises:
        DataError: a control is unknown, or needs the training set.
    """
    layers = (ALL_LAYERS, *model.layers) if layers is None else tuple(layers)
    describe = functools.partial(describe_rows, model, rows.keys, decoding=decoding)
    return StoredCaptions(
        layers={
            layer: describe({slot: rows.features[slot] for slot in model.slots(layer)})
            for layer in layers
        },
        controls={
            name: control_captions(name, model, rows, train=train, decoding=decoding, seed=seed)
            for name in controls
        },
    )


def score_stored(
    said: StoredCaptions,
    rows: HeldOut,
    *,
    metrics: Sequence[str] = QUICK,
    bert: BertScoreConfig | None = None,
) -> StoredEvaluation:
    """Score what was said of rows; metrics and their settings as `caption_scores`."""
    references = dict(zip(rows.keys, rows.references, strict=True))
    score = functools.partial(caption_scores, references=references, metrics=metrics, bert=bert)
    return StoredEvaluation(
        layers={layer: score(texts) for layer, texts in said.layers.items()},
        controls={name: score(texts) for name, texts in said.controls.items()},
        captions=said.layers,
    )


def evaluate_stored(
    model: DeViL, rows: HeldOut, *, metrics: Sequence[str] = QUICK, **described: Any
) -> StoredEvaluation:
    """`describe_stored`, with its arguments, and `score_stored`."""
    return score_stored(describe_stored(model, rows, **described), rows, metrics=metrics)


def control_captions(
    name: str,
    model: DeViL,
    rows: HeldOut,
    *,
    train: HeldOut | None = None,
    decoding: DecodingConfig | None = None,
    seed: int = 0,
) -> dict[str, str]:
    """Key → caption of a control; arguments and errors as `describe_stored`."""
    if name not in CONTROLS:
        raise DataError(f"unknown control {name!r}; there are {', '.join(CONTROLS)}.")
    every = {slot: rows.features[slot] for slot in model.slots(ALL_LAYERS)}
    if name == SHUFFLED:
        other = derangement(len(rows.keys), seed)
        return describe_rows(model, rows.keys, {s: v[other] for s, v in every.items()}, decoding)
    if name == MEAN:
        mean = {slot: model.statistics[slot].mean[None] for slot in every}
        said = describe_rows(model, rows.keys[:1], mean, decoding)
        return dict.fromkeys(rows.keys, said[rows.keys[0]])
    if train is None:
        raise DataError(f"the control {name} needs the features of the training set.")
    if name == FREQUENT:
        return dict.fromkeys(rows.keys, most_frequent_caption(train.references))
    last = model.layers[-1]
    nearest = nearest_captions(rows.features[last], train.features[last], train.references)
    return dict(zip(rows.keys, nearest, strict=True))


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
