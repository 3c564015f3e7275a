"""Pictures → explanations: one backbone pass, then all locations of all layers in one batch.

Captions of pooled layers, of each location, and saliency maps for queries. Decoding and scoring
themselves are in `decoding` and `saliency`.
"""

import itertools
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from devil.config import DecodingConfig
from devil.errors import BackboneError, QueryError
from devil.explanation import Caption, Explanation, LayerExplanation
from devil.images import open_image
from devil.model import DeViL
from devil.pooling import location_vectors, mean_pool, resize_map, smooth
from devil.reading import read_prefixes
from devil.saliency import (
    Calibration,
    Query,
    calibrate,
    check_calibration,
    plan_queries,
    tokenize_queries,
    vocabulary_log_probabilities,
)
from devil.translator import class_slot
from devil.types import ALL_LAYERS, LayerFeatures
from devil.vocabulary import Readout, VocabularyMaps, read_vocabulary

Features = Mapping[str, LayerFeatures]
Vectors = Mapping[str, Tensor]


@torch.inference_mode()
def image_features(model: DeViL, images: Sequence[Image.Image]) -> Features:
    """Feature maps of RGB pictures, from one pass of the model's backbone.

    Raises:
        BackboneError: the model was loaded without its backbone.
    """
    if model.backbone is None:
        raise BackboneError(
            "this model was loaded without its backbone; load it with load_backbone=True."
        )
    batch = torch.stack([model.backbone.transform(image) for image in images])
    return model.backbone(batch.to(model.device))


def pooled_features(
    model: DeViL, features: Features, layer: str
) -> dict[str, Float[Tensor, "batch channels"]]:
    """Pooled vectors of one layer, or of all, by slot; class tokens where the model has them."""
    layers = model.layers if layer == ALL_LAYERS else (layer,)
    pooled = {name: mean_pool(features[name].map) for name in layers}
    if model.translator.config.class_tokens:
        for name in layers:
            token = features[name].class_token
            assert token is not None, name
            pooled[class_slot(name)] = token
    return pooled


def location_features(
    model: DeViL, features: Features, layer: str, *, smoothing: int = 1
) -> tuple[dict[str, Float[Tensor, "row channels"]], tuple[int, int]]:
    """Vectors of every location by slot, rows = pictures × locations, and the grid.

    All layers at once meet on the grid of the last one, bilinearly.
    """
    layers = model.layers if layer == ALL_LAYERS else (layer,)
    maps = {name: smooth(features[name].map, smoothing) for name in layers}
    grid = tuple(map(int, maps[layers[-1]].shape[2:]))
    assert len(grid) == 2
    vectors = {
        name: location_vectors(resize_map(feature_map, grid)).flatten(0, 1)
        for name, feature_map in maps.items()
    }
    return vectors, grid


def explain_images(
    model: DeViL,
    images: Sequence[str | PathLike[str] | bytes | Image.Image],
    *,
    layers: Sequence[str] | str | None = None,
    queries: Sequence[str] | str = (),
    dense: bool = True,
    calibration: Calibration = "pmi",
    prompt: str = "",
    smoothing: int = 1,
    decoding: DecodingConfig | None = None,
    sources: Sequence[str | None] | None = None,
) -> list[Explanation]:
    """Explain several pictures at once; arguments and errors as `DeViL.explain`.

    Args:
        sources: a name for each picture, kept in its explanation; default: its path, if it has one.
    """
    chosen = model.chosen_layers(layers)
    queries = (queries,) if isinstance(queries, str) else queries
    check_calibration(calibration, len(queries))
    asked = tokenize_queries(model.language_model, queries, prompt=prompt)
    if sources is None:
        sources = [None if isinstance(i, bytes | Image.Image) else str(i) for i in images]
    pictures = [open_image(image) for image in images]
    if not pictures:
        return []
    features = image_features(model, pictures)
    assert model.backbone is not None
    vectors, grids = {}, {}
    for layer in chosen:
        vectors[layer], grids[layer] = location_features(
            model, features, layer, smoothing=smoothing
        )
    written, dense_written, scores = _read(
        model,
        [pooled_features(model, features, layer) for layer in chosen],
        [vectors[layer] for layer in chosen] if dense or asked else [],
        [model.mean_features(_visible_slots(model, layer)) for layer in chosen]
        if calibration == "pmi" and asked
        else [],
        asked,
        dense,
        decoding or DecodingConfig(),
    )
    parts: dict[str, list[LayerExplanation]] = {}
    for index, layer in enumerate(chosen):
        found = None
        if scores:
            found = calibrate(
                scores[index], asked, calibration, lambda i=index: scores[len(chosen) + i]
            )
        parts[layer] = _layer_explanations(
            layer,
            (len(pictures), *grids[layer]),
            written[index],
            dense_written[index] if dense else None,
            found,
            asked,
        )
    return [
        Explanation(
            image_size=picture.size,
            region=model.backbone.transform.region(picture.size),
            layers={layer: parts[layer][i] for layer in chosen},
            queries=tuple(queries),
            calibration=calibration,
            model=model.name,
            version=model.version,
            source=source,
            image=picture,
        )
        for i, (picture, source) in enumerate(zip(pictures, sources, strict=True))
    ]


def vocabulary_saliency(
    model: DeViL,
    images: Sequence[str | PathLike[str] | bytes | Image.Image],
    *,
    layers: Sequence[str] | str | None = None,
    top: int = 10,
    calibration: Literal["none", "pmi"] = "pmi",
    prompt: str = "",
    smoothing: int = 1,
    decoding: DecodingConfig | None = None,
) -> list[dict[str, VocabularyMaps]]:
    """The whole vocabulary at every location; arguments and errors as `DeViL.vocabulary_saliency`.

    Returns:
        For each picture the maps of each layer.
    """
    chosen = model.chosen_layers(layers)
    if calibration not in ("none", "pmi"):
        raise QueryError(f"calibration is {calibration!r}; allowed here: none, pmi.")
    if top < 1:
        raise QueryError(f"top is {top}; at least 1 word per location can be asked for.")
    decoding = decoding or DecodingConfig()
    pictures = [open_image(image) for image in images]
    if not pictures:
        return []
    lm = model.language_model
    features = image_features(model, pictures)
    found: list[dict[str, VocabularyMaps]] = [{} for _ in pictures]
    for layer in chosen:
        baseline = None
        if calibration == "pmi":
            mean = model.prefix(model.mean_features(_visible_slots(model, layer)))
            baseline = vocabulary_log_probabilities(lm, mean, prompt=prompt)[0]
        vectors, grid = location_features(model, features, layer, smoothing=smoothing)
        prefix = model.prefix(vectors, memory_gb=decoding.memory_gb)
        readout = read_vocabulary(
            lm,
            prefix,
            top=top,
            prompt=prompt,
            baseline=baseline,
            batch_size=decoding.batch_size,
            memory_gb=decoding.memory_gb,
        )
        each = grid[0] * grid[1]
        for i, maps in enumerate(found):
            part = Readout(*(column[i * each : (i + 1) * each] for column in readout))
            maps[layer] = VocabularyMaps(layer, grid, part, lm, baseline)
    return found


def _visible_slots(model: DeViL, layer: str) -> tuple[str, ...]:
    # Locations show no class tokens, so neither does the baseline.
    return model.layers if layer == ALL_LAYERS else (layer,)


def _read(
    model: DeViL,
    pooled: Sequence[Vectors],
    dense: Sequence[Vectors],
    baselines: Sequence[Vectors],
    queries: Sequence[Query],
    write_dense: bool,
    decoding: DecodingConfig,
) -> tuple[list[list[Caption]], list[list[Caption]], list[Tensor]]:
    """Captions of pooled and dense vectors, and scores of dense ones and baselines, by layer.

    All rows of all layers go through the language model together, each of them once.
    """
    groups = [
        [model.prefix(vectors, memory_gb=decoding.memory_gb) for vectors in group]
        for group in (pooled, dense, baselines)
    ]
    sizes = [[len(prefix) for prefix in group] for group in groups]
    written = sum(sizes[0]) + (sum(sizes[1]) if write_dense else 0)
    reading = read_prefixes(
        model.language_model,
        torch.cat([prefix for group in groups for prefix in group]),
        plan_queries(model.language_model, queries),
        decoding,
        captions=written,
        scored_from=sum(sizes[0]),
    )
    captions = iter(reading.captions)
    by_layer = [[list(itertools.islice(captions, n)) for n in group] for group in sizes[:2]]
    scores = reading.scores
    split = [] if scores is None else list(scores.split([*sizes[1], *sizes[2]]))
    return by_layer[0], by_layer[1], split


def _layer_explanations(
    layer: str,
    maps: tuple[int, int, int],
    captions: Sequence[Caption],
    written: Sequence[Caption] | None,
    scores: Float[Tensor, "row query"] | None,
    queries: Sequence[Query],
) -> list[LayerExplanation]:
    """Cut rows = pictures × locations into one `LayerExplanation` for each picture."""
    count, height, width = maps
    grids = None if scores is None else scores.float().cpu().numpy().reshape(*maps, len(queries))
    result = []
    for i in range(count):
        cells = None
        if written is not None:
            start = i * height * width
            rows = [written[start + r * width : start + (r + 1) * width] for r in range(height)]
            cells = tuple(tuple(row) for row in rows)
        saliency = {
            query.text: np.ascontiguousarray(grids[i, :, :, q])
            for q, query in enumerate(queries)
            if grids is not None
        }
        result.append(
            LayerExplanation(
                layer=layer,
                grid=(height, width),
                caption=captions[i],
                captions=cells,
                saliency=saliency,
            )
        )
    return result
