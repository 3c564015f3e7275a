"""Does the description of a location name the object there, and how wide is "there"?

Crop coherence (DeViL, Fig. 7) without an image-text model: object masks say which category covers
most of a field around each location (`fields`), and a caption agrees with the field whose category
it names (`naming`). The controls are the captions of another picture at the same locations, those
of a random backbone, the caption of the mean feature, and the most frequent category said
everywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from devil.config import DecodingConfig
from devil.errors import DataError
from devil.evaluation.bootstrap import mean_interval
from devil.evaluation.fields import NOTHING, FieldConfig, covering_categories
from devil.evaluation.location_captions import drawn_locations, layer_grid, location_captions
from devil.evaluation.naming import Naming
from devil.evaluation.stored import derangement
from devil.model import DeViL
from devil.picture_features import image_features


class FieldRow(NamedTuple):
    """One picture in one layer."""

    named: np.ndarray
    """(location, category) bool: what each location's caption names."""
    covered: np.ndarray
    """(field, location) int: which category covers the field, or `NOTHING`."""


@dataclass(frozen=True, kw_only=True)
class FieldScore:
    """Share of locations whose caption names the category of their field, beside controls."""

    hits: float | None
    """None where there are no locations, as are the others."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval of the hits, over pictures."""
    shuffled: float | None
    """By the captions of another picture, at the same locations."""
    mean_feature: float | None
    """By the caption of the training set's mean feature."""
    random_backbone: float | None
    """By the captions of a model for a backbone with random weights; None without one."""
    constant: float | None
    """By saying the most frequent category of these fields everywhere."""
    constant_category: str | None
    locations: int


@dataclass(frozen=True, kw_only=True)
class LayerFields:
    """One layer."""

    fields: Mapping[str, FieldScore]
    """By field, on all locations whose field has a category."""
    contested: Mapping[str, FieldScore]
    """By field, on the locations where all fields have a category, and not all the same."""
    best: str | None
    """The contested field whose hits exceed the shuffled captions' most; None if none does."""


def field_rows(
    model: DeViL,
    images: Sequence[Image.Image],
    masks: Sequence[Mapping[str, np.ndarray]],
    naming: Naming,
    *,
    layers: Sequence[str] | str | None = None,
    fields: FieldConfig | None = None,
    locations: int = 0,
    decoding: DecodingConfig | None = None,
    seed: int = 0,
) -> dict[str, list[FieldRow]]:
    """What the captions of RGB pictures' locations name, and what covers the fields around them.

    Args:
        model: with its backbone.
        images: pictures, described in one batch.
        masks: for each picture category → (height, width) bool, its objects' pixels.
        naming: finds the categories in captions, and numbers them.
        layers: as `DeViL.explain`.
        fields: which fields.
        locations: how many of a layer's locations, drawn once for all pictures; 0: all.
        decoding: of the captions.
        seed: of the draw.

    Returns:
        Per layer one row for each picture.

    Raises:
        LayerError, BackboneError: a layer or the model cannot be used.
        DataError: a mask has another size than its picture.
    """
    fields = fields or FieldConfig()
    features = image_features(model, images)
    assert model.backbone is not None
    transform = model.backbone.transform
    result: dict[str, list[FieldRow]] = {}
    for layer in model.chosen_layers(layers):
        grid = layer_grid(model, layer)
        chosen = drawn_locations(grid, locations, seed)
        said = location_captions(model, features, layer, chosen, decoding)
        result[layer] = []
        for image, objects, captions in zip(images, masks, said, strict=True):
            covered = covering_categories(
                objects,
                naming.categories,
                grid=grid,
                region=transform.region(image.size),
                picture=image.size,
                side=transform.crop[0],
                config=fields,
            )
            row = FieldRow(named=named_matrix(naming, captions), covered=covered[:, chosen])
            result[layer].append(row)
    return result


def named_matrix(naming: Naming, captions: Sequence[str]) -> np.ndarray:
    """(caption, category) bool: what each caption names."""
    number = {category: i for i, category in enumerate(naming.categories)}
    known: dict[str, list[int]] = {}
    result = np.zeros((len(captions), len(number)), dtype=bool)
    for row, caption in enumerate(captions):
        if caption not in known:
            known[caption] = [number[category] for category in naming(caption)]
        result[row, known[caption]] = True
    return result


def field_coherence(
    rows: Sequence[FieldRow],
    mean_named: np.ndarray,
    categories: Sequence[str],
    fields: Sequence[str],
    *,
    untrained: Sequence[np.ndarray] | None = None,
    seed: int = 0,
) -> LayerFields:
    """How often one layer's captions name what covers each field.

    Args:
        rows: one for each picture, all with the same locations.
        mean_named: (category,) bool, what the mean feature's caption names.
        categories, fields: their names.
        untrained: for each picture as `FieldRow.named`, of the control with a random backbone.
        seed: of the assignment of other pictures' captions, and of the bootstrap.

    Raises:
        DataError: fewer than two pictures: there is no other picture's caption.
    """
    if len(rows) < 2:
        raise DataError(f"field coherence needs two pictures or more; there are {len(rows)}.")
    named = np.stack([row.named for row in rows])
    covered = np.stack([row.covered for row in rows]).transpose(1, 0, 2)
    said = {"hits": named, "shuffled": named[derangement(len(rows), seed).numpy()]}
    if untrained is not None:
        said["random_backbone"] = np.stack(untrained)
    complete = (covered != NOTHING).all(axis=0)
    contested = complete & (covered != covered[0]).any(axis=0)
    scores: dict[str, dict[str, FieldScore]] = {"fields": {}, "contested": {}}
    for field, category in zip(fields, covered, strict=True):
        for kind, counted in (("fields", category != NOTHING), ("contested", contested)):
            scores[kind][field] = _score(category, counted, said, mean_named, categories, seed)
    gaps = {
        field: score.hits - score.shuffled
        for field, score in scores["contested"].items()
        if score.hits is not None and score.shuffled is not None
    }
    best = max(gaps, key=lambda field: gaps[field], default=None)
    return LayerFields(**scores, best=best if best is not None and gaps[best] > 0 else None)


def _score(
    category: np.ndarray,
    counted: np.ndarray,
    said: Mapping[str, np.ndarray],
    mean_named: np.ndarray,
    categories: Sequence[str],
    seed: int,
) -> FieldScore:
    """One field's score; `said`: whose captions → (picture, location, category) bool."""
    picture, location = np.nonzero(counted)
    wanted = category[picture, location]
    shares: dict[str, float | None] = dict.fromkeys(("hits", "shuffled", "random_backbone"))
    if not len(wanted):
        return FieldScore(
            **shares,
            interval=None,
            mean_feature=None,
            constant=None,
            constant_category=None,
            locations=0,
        )
    shares |= {who: float(named[picture, location, wanted].mean()) for who, named in said.items()}
    hits = said["hits"][picture, location, wanted].astype(float)
    _, low, high = mean_interval(hits, picture.tolist(), seed=seed)
    counts = np.bincount(wanted, minlength=len(categories))
    return FieldScore(
        **shares,
        interval=(low, high),
        mean_feature=float(mean_named[wanted].mean()),
        constant=float(counts.max() / len(wanted)),
        constant_category=categories[int(counts.argmax())],
        locations=len(wanted),
    )
