"""Crop coherence: how much of the picture does the description of one location speak of?

DeViL (arXiv 2309.01617), Fig. 7: an image-text model compares the description at the location
nearest the centre of a layer's map with centre crops of the picture; shallow layers should fit
small crops. Such a model may prefer one size whatever the text says, so what counts is the
difference to the captions of other pictures and of the mean feature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from devil.config import DecodingConfig
from devil.errors import ConfigError, DataError
from devil.evaluation.image_text import ImageTextModel
from devil.evaluation.location_captions import (
    central_location,
    layer_grid,
    location_captions,
)
from devil.evaluation.stored import derangement
from devil.images import EvaluationTransform
from devil.model import DeViL
from devil.picture_features import image_features

SIZES = (32, 64, 128)
"""Sides of the centre crops in pixels of the backbone's input; the whole input comes last."""


class CropRow(NamedTuple):
    """One picture: what is said of its centre, and the vectors of texts and crops."""

    captions: tuple[str, ...]
    """One for each layer."""
    texts: np.ndarray
    """(layer, width), unit vectors of the captions."""
    crops: np.ndarray
    """(size, width), unit vectors of the crops."""


@dataclass(frozen=True, kw_only=True)
class CropScore:
    """Which crops some captions fit; one number for each size."""

    best: tuple[float, ...]
    """Share of pictures whose most similar crop has this size."""
    mean_best: float
    """Mean side of the most similar crop, in pixels of the input."""
    similarity: tuple[float, ...]
    """Mean cosine similarity."""


@dataclass(frozen=True, kw_only=True)
class LayerCrops:
    """One layer, beside its controls on the same pictures."""

    own: CropScore
    """Each picture's own caption."""
    shuffled: CropScore
    """The caption of another picture's features."""
    mean_feature: CropScore
    """The caption of the training set's mean feature, for every picture."""
    random_backbone: CropScore | None = None
    """The caption of a model for a backbone with random weights, where there is one."""


def crop_sizes(sizes: Sequence[int], side: int) -> tuple[int, ...]:
    """The sides of the crops, rising, with the whole input last.

    Raises:
        ConfigError: a size is below 1 or not smaller than the input.
    """
    wrong = [size for size in sizes if not 1 <= size < side]
    if wrong:
        raise ConfigError(f"crop sizes {wrong} are not between 1 and {side - 1}, the input's side.")
    return (*sorted(set(sizes)), side)


def input_picture(
    transform: EvaluationTransform, pixels: Float[Tensor, "3 height width"]
) -> Image.Image:
    """The picture that a backbone sees: its input tensor, without the normalisation."""
    mean, std = torch.tensor(transform.mean), torch.tensor(transform.std)
    values = (pixels.cpu() * std[:, None, None] + mean[:, None, None]) * 255
    return Image.fromarray(values.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def centre_crops(picture: Image.Image, sizes: Sequence[int]) -> list[Image.Image]:
    """Square crops around the centre."""
    width, height = picture.size
    corners = [((width - size) // 2, (height - size) // 2, size) for size in sizes]
    return [picture.crop((x, y, x + size, y + size)) for x, y, size in corners]


def crop_rows(
    model: DeViL,
    judge: ImageTextModel,
    images: Sequence[Image.Image],
    *,
    layers: Sequence[str] | str | None = None,
    sizes: Sequence[int] = SIZES,
    decoding: DecodingConfig | None = None,
) -> list[CropRow]:
    """Describe the centres of RGB pictures; embed these texts, and the centre crops.

    Args:
        model: with its backbone.
        judge: the image-text model.
        images: pictures, explained in one batch.
        layers: as `DeViL.explain`.
        sizes: as `crop_sizes`.
        decoding: of the captions.

    Raises:
        LayerError, ConfigError, BackboneError: a layer, a size or the model cannot be used.
    """
    chosen = model.chosen_layers(layers)
    features = image_features(model, images)
    assert model.backbone is not None
    transform = model.backbone.transform
    sides = crop_sizes(sizes, transform.crop[0])
    said = [
        location_captions(
            model, features, layer, [central_location(layer_grid(model, layer))], decoding
        )
        for layer in chosen
    ]
    captions = [tuple(layer[i][0] for layer in said) for i in range(len(images))]
    texts = judge.texts([text for row in captions for text in row])
    crops = [
        crop
        for image in images
        for crop in centre_crops(input_picture(transform, transform(image)), sides)
    ]
    vectors = judge.images(crops).unflatten(0, (len(images), len(sides))).numpy()
    return [
        CropRow(caption, text, crop)
        for caption, text, crop in zip(
            captions, texts.unflatten(0, (len(images), len(chosen))).numpy(), vectors, strict=True
        )
    ]


def crop_coherence(
    crops: Float[np.ndarray, "picture size width"],
    texts: Float[np.ndarray, "picture layer width"],
    means: Float[np.ndarray, "layer width"],
    *,
    layers: Sequence[str],
    sizes: Sequence[int],
    untrained: Float[np.ndarray, "picture layer width"] | None = None,
    seed: int = 0,
) -> Mapping[str, LayerCrops]:
    """Which crops the captions of each layer fit, beside the controls.

    Args:
        crops, texts: of all pictures, out of `crop_rows`.
        means: what is said of each layer's mean feature (`mean_caption`), embedded.
        layers: their names.
        sizes: out of `crop_sizes`.
        untrained: as `texts`, of the control with a random backbone.
        seed: of the assignment of other pictures' captions.

    Raises:
        DataError: fewer than two pictures: there is no other picture's caption.
    """
    count = len(crops)
    if count < 2:
        raise DataError(f"crop coherence needs two pictures or more; there are {count}.")
    other = derangement(count, seed).numpy()
    sides = np.asarray(sizes)
    result = {}
    for index, layer in enumerate(layers):
        own = texts[:, index]
        result[layer] = LayerCrops(
            own=_score(crops, own, sides),
            shuffled=_score(crops, own[other], sides),
            mean_feature=_score(crops, np.broadcast_to(means[index], own.shape), sides),
            random_backbone=(
                None if untrained is None else _score(crops, untrained[:, index], sides)
            ),
        )
    return result


def _score(crops: np.ndarray, texts: np.ndarray, sides: np.ndarray) -> CropScore:
    similarity = np.einsum("psw,pw->ps", crops, texts)
    best = similarity.argmax(axis=1)
    return CropScore(
        best=tuple(float(np.mean(best == i)) for i in range(len(sides))),
        mean_best=float(sides[best].mean()),
        similarity=tuple(map(float, similarity.mean(axis=0))),
    )
