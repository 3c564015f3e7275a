"""torchvision classifiers (`torchvision:resnet50/IMAGENET1K_V2`)."""

from typing import Any

import torchvision

from devil.backbones.base import LayerOutput, LoadedModel
from devil.backbones.weights import load_weights, read_state_dict
from devil.config import BackboneConfig
from devil.errors import BackboneError
from devil.images import EvaluationTransform

CLASSIFIERS = ("fc", "classifier", "classifier.1", "classifier.6", "head", "heads.head")
"""Where torchvision's families keep the last Linear or 1 × 1 convolution."""


def load_torchvision(name: str, config: BackboneConfig) -> LoadedModel:
    """Build a torchvision model; `NAME/WEIGHTS` chooses one of its published weights."""
    architecture, _, tag = name.partition("/")
    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        raise BackboneError(f"torchvision has no model {architecture!r}; models: {known}.")
    published: Any = torchvision.models.get_model_weights(architecture)
    tags = [entry.name for entry in published]
    if tag and tag not in [*tags, "DEFAULT"]:
        raise BackboneError(f"torchvision:{architecture} has no weights {tag!r}; tags: {tags}.")
    entry = published[tag or "DEFAULT"]
    arguments: dict[str, Any] = {}
    state = None
    if config.weights not in ("pretrained", "random"):
        state = read_state_dict(config.weights)
        head = next((c for c in CLASSIFIERS if f"{c}.weight" in state), None)
        arguments["num_classes"] = int(state[f"{head}.weight"].shape[0]) if head else 1000
    if config.image_size and architecture.startswith("vit_"):
        arguments["image_size"] = config.image_size
    model: Any = torchvision.models.get_model(
        architecture, weights=entry if config.weights == "pretrained" else None, **arguments
    )
    if state is not None:
        load_weights(model, state, config.weights)
    return LoadedModel(module=model, transform=_transform(entry, config), output=_output(model))


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
