"""Pictures → explanations: one backbone pass, then all locations of all pictures in one batch.

Captions of pooled layers, of each location, and saliency maps for queries. Decoding and scoring
themselves are in `decoding` and `saliency`.
"""

from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from devil.config import DecodingConfig
from devil.decoding import greedy_captions
from devil.errors import BackboneError
from devil.explanation import Caption, Explanation, LayerExplanation
from devil.images import open_image
from devil.model import DeViL
from devil.pooling import location_vectors, mean_pool, resize_map, smooth
from devil.saliency import (
    Calibration,
    Query,
    calibrate,
    check_calibration,
    query_log_probabilities,
    tokenize_queries,
)
from devil.translator import class_slot
from devil.types import ALL_LAYERS, LayerFeatures

Features = Mapping[str, LayerFeatures]


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
    decoding = decoding or DecodingConfig()
    captions = _layer_captions(model, features, chosen, decoding)
    parts: dict[str, list[LayerExplanation]] = {}
    for layer in chosen:
        vectors, grid = location_features(model, features, layer, smoothing=smoothing)
        maps = (len(pictures), *grid)
        written, scores = None, None
        if dense or asked:
            prefix = model.prefix(vectors)
            written = greedy_captions(model.language_model, prefix, decoding) if dense else None
            scores = _scores(model, prefix, layer, asked, calibration, decoding) if asked else None
        parts[layer] = _layer_explanations(layer, maps, captions[layer], written, scores, asked)
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


def _layer_captions(
    model: DeViL, features: Features, layers: Sequence[str], decoding: DecodingConfig
) -> dict[str, list[Caption]]:
    """Captions of pooled layers, all decoded in one batch."""
    prefixes = [model.prefix(pooled_features(model, features, layer)) for layer in layers]
    captions = greedy_captions(model.language_model, torch.cat(prefixes), decoding)
    count = len(prefixes[0])
    return {layer: captions[i * count : (i + 1) * count] for i, layer in enumerate(layers)}


def _scores(
    model: DeViL,
    prefix: Float[Tensor, "row prefix hidden"],
    layer: str,
    queries: Sequence[Query],
    calibration: Calibration,
    decoding: DecodingConfig,
) -> Float[Tensor, "row query"]:
    size = decoding.batch_size

    def score(rows: Tensor) -> Tensor:
        return query_log_probabilities(model.language_model, rows, queries, batch_size=size)

    def of_mean_feature() -> Tensor:
        # Locations show no class tokens, so neither does the baseline.
        layers = model.layers if layer == ALL_LAYERS else (layer,)
        return score(model.prefix(model.mean_features(layers)))

    return calibrate(score(prefix), queries, calibration, of_mean_feature)


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
