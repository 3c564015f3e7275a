"""Pictures → feature vectors: one backbone pass, then pooled layers and locations by slot.

DeViL (arXiv 2309.01617) §3.2: a translator reads one pooled vector per layer in training, and at
inference pooled ones or those of locations.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from devil.errors import BackboneError
from devil.model import DeViL
from devil.pooling import location_vectors, mean_pool, resize_map, smooth
from devil.translator import class_slot
from devil.types import ALL_LAYERS, LayerFeatures

Features = Mapping[str, LayerFeatures]
"""Maps and class tokens by layer."""


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


def of_picture(features: Features, index: int) -> Features:
    """The features of one picture of a batch, as a batch of one."""
    return {
        name: LayerFeatures(
            layer.map[index : index + 1],
            None if layer.class_token is None else layer.class_token[index : index + 1],
        )
        for name, layer in features.items()
    }


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


def visible_slots(model: DeViL, layer: str) -> tuple[str, ...]:
    """Slots that a location of a layer, or of all, shows: no class tokens."""
    return model.layers if layer == ALL_LAYERS else (layer,)
