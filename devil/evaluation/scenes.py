"""What explanations of drawn scenes are worth: masks are known, so locations can be checked.

`location_accuracy`: does the caption at a location name the object that covers it? `pointing_game`:
does the map for an object's name peak on the object? Each stands beside its control, the same
model on the features of another picture, or chance.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from devil.config import DecodingConfig
from devil.data.scenes import Scene, with_article
from devil.decoding import greedy_captions
from devil.errors import DataError
from devil.evaluation.pointing import (
    PointingScore,
    blend_neighbours,
    pointing_score,
    points_at,
)
from devil.evaluation.stored import derangement
from devil.images import EvaluationTransform
from devil.model import DeViL
from devil.picture_features import image_features, location_features
from devil.saliency import query_log_probabilities, tokenize_queries

COVER = 0.5
"""A location belongs to an object that covers at least this share of it."""


@dataclass(frozen=True, kw_only=True)
class LocationAccuracy:
    """Share of object locations whose caption names the object (colour and kind)."""

    accuracy: float
    shuffled: float
    """The same on features of another picture at the same location."""
    locations: int


def names(caption: str, colour: str, kind: str) -> bool:
    """Whether a caption calls something `colour [texture] kind`."""
    return re.search(rf"\b{colour} (?:\w+ )?{kind}\b", caption) is not None


def object_shares(
    mask: np.ndarray, grid: tuple[int, int], transform: EvaluationTransform
) -> np.ndarray:
    """Share of each location's cell that a mask (height, width) covers: (rows, columns)."""
    height, width = mask.shape
    left, top, right, bottom = transform.region((width, height))
    ys = np.linspace(top, bottom, grid[0] + 1)
    xs = np.linspace(left, right, grid[1] + 1)
    shares = np.zeros(grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            y, x = (max(0, round(float(v))) for v in (ys[row], xs[column]))
            cell = mask[y : max(y + 1, round(ys[row + 1])), x : max(x + 1, round(xs[column + 1]))]
            shares[row, column] = cell.mean() if cell.size else 0.0
    return shares


@torch.inference_mode()
def location_accuracy(
    model: DeViL,
    scenes: Sequence[Scene],
    layer: str,
    *,
    decoding: DecodingConfig | None = None,
    seed: int = 0,
) -> LocationAccuracy:
    """Caption every location on an object, from this picture's features and from another's.

    Raises:
        DataError: no location belongs to an object.
    """
    assert model.backbone is not None
    features = image_features(model, [scene.image for scene in scenes])
    vectors, grid = location_features(model, features, layer)
    per_scene = grid[0] * grid[1]
    other = derangement(len(scenes), seed).tolist()
    rows: list[int] = []
    wrong: list[int] = []
    wanted: list[tuple[str, str]] = []
    for index, scene in enumerate(scenes):
        for item in scene.objects:
            shares = object_shares(item.mask, grid, model.backbone.transform).ravel()
            for location in np.flatnonzero(shares >= COVER).tolist():
                rows.append(index * per_scene + location)
                wrong.append(other[index] * per_scene + location)
                wanted.append((item.colour, item.kind))
    if not rows:
        raise DataError(f"no location of {layer} lies on an object; the grid {grid} is too coarse.")
    scores = []
    for chosen in (rows, wrong):
        prefix = model.prefix({slot: values[chosen] for slot, values in vectors.items()})
        captions = greedy_captions(model.language_model, prefix, decoding)
        hits = [names(c.text, *want) for c, want in zip(captions, wanted, strict=True)]
        scores.append(float(np.mean(hits)))
    return LocationAccuracy(accuracy=scores[0], shuffled=scores[1], locations=len(rows))


class NameMap(NamedTuple):
    """The map for an object's name in its scene, and where the object is."""

    values: np.ndarray
    """(rows, columns), in nats."""
    region: tuple[float, float, float, float]
    """Left, top, right, bottom of what the map covers, in pixels of the picture."""
    mask: np.ndarray
    """(height, width) bool, the object's pixels."""


@torch.inference_mode()
def name_maps(
    model: DeViL, scenes: Sequence[Scene], layer: str, *, prompt: str = "", smoothing: int = 1
) -> list[NameMap]:
    """Query each object's name with its article ("an orange fish") in its scene.

    Scores are not calibrated: what `pmi` takes off is the same everywhere in a map, and leaves its
    maximum where it is. Arguments as `DeViL.explain`.
    """
    assert model.backbone is not None
    transform = model.backbone.transform
    features = image_features(model, [scene.image for scene in scenes])
    vectors, grid = location_features(model, features, layer, smoothing=smoothing)
    per_scene = grid[0] * grid[1]
    prefix = model.prefix(vectors)
    found = []
    for index, scene in enumerate(scenes):
        queries = tokenize_queries(
            model.language_model, [with_article(o.name) for o in scene.objects], prompt=prompt
        )
        scores = query_log_probabilities(
            model.language_model, prefix[index * per_scene : (index + 1) * per_scene], queries
        )
        region = transform.region(scene.image.size)
        for number, item in enumerate(scene.objects):
            values = scores[:, number].reshape(*grid).cpu().numpy()
            found.append(NameMap(values, region, item.mask))
    return found


def pointing_game(maps: Sequence[NameMap], *, neighbours: float = 0.0) -> PointingScore:
    """Where the maps peak, after `blend_neighbours`."""
    return pointing_score(
        (points_at(blend_neighbours(m.values, neighbours), m.region, m.mask), float(m.mask.mean()))
        for m in maps
    )


def best_layer(accuracy: Mapping[str, LocationAccuracy]) -> str:
    """The layer with the highest accuracy; the first of equals."""
    return max(accuracy, key=lambda layer: accuracy[layer].accuracy)
