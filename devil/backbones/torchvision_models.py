"""torchvision classifiers (`torchvision:resnet50/IMAGENET1K_V2`)."""

import difflib
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import Tensor

from devil.backbones.base import LoadedModel
from devil.backbones.layout import LayerOutput
from devil.backbones.weights import load_weights, read_state_dict
from devil.config import BackboneConfig
from devil.errors import BackboneError
from devil.images import EvaluationTransform

HEADS = ("fc", "classifier", "head", "heads")
"""Where torchvision's families keep the last Linear or 1 × 1 convolution."""


def load_torchvision(name: str, config: BackboneConfig) -> LoadedModel:
    """Build a torchvision model; `NAME/WEIGHTS` chooses one of its published weights."""
    architecture, _, tag = name.partition("/")
    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        close = difflib.get_close_matches(architecture, known, 10, 0.4)
        raise BackboneError(
            f"torchvision has no model {architecture!r}; similar names: {close}. "
            "torchvision.models.list_models() has them all."
        )
    published: Any = torchvision.models.get_model_weights(architecture)
    tags = [entry.name for entry in published]
    if tag and tag not in [*tags, "DEFAULT"]:
        raise BackboneError(f"torchvision:{architecture} has no weights {tag!r}; tags: {tags}.")
    entry = published[tag or "DEFAULT"]
    arguments: dict[str, Any] = {}
    state = None
    if config.weights not in ("pretrained", "random"):
        state = read_state_dict(config.weights)
        arguments["num_classes"] = _classes(state)
    if config.image_size and architecture.startswith("vit_"):
        arguments["image_size"] = config.image_size
    model: Any = torchvision.models.get_model(
        architecture, weights=entry if config.weights == "pretrained" else None, **arguments
    )
    if state is not None:
        load_weights(model, state, config.weights)
    return LoadedModel(module=model, transform=_transform(entry, config), output=_output(model))


def _classes(state: Mapping[str, Tensor]) -> int:
    """Number of outputs of the last layer of the head in a state dict."""
    names = sorted(k for k in state if k.split(".")[0] in HEADS and k.endswith(".weight"))
    heads = [state[name] for name in names if state[name].ndim > 1]
    return int(heads[-1].shape[0]) if heads else 1000


def _transform(entry: Any, config: BackboneConfig) -> EvaluationTransform:
    preset = entry.transforms()
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    if config.image_size:
        resize = round(resize * config.image_size / crop)
        crop = config.image_size
    return EvaluationTransform(
        resize=resize,
        crop=(crop, crop),
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _output(model: Any) -> LayerOutput:
    family = type(model).__name__
    if family == "VisionTransformer":
        return LayerOutput(prefix_tokens=1, class_token=True)
    return LayerOutput(channels_last=family == "SwinTransformer")
