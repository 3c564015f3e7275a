"""timm models: CNNs, ViTs, Swin, ConvNeXt, ... (`timm:vit_tiny_patch16_224`)."""

import math
from typing import Any

import timm
import timm.data

from devil.backbones.base import LayerOutput, LoadedModel
from devil.backbones.weights import classes_in, load_weights, read_state_dict
from devil.config import BackboneConfig
from devil.errors import BackboneError
from devil.images import EvaluationTransform


def load_timm(name: str, config: BackboneConfig) -> LoadedModel:
    """Build a timm model; a hub repository is named as timm does (`timm:hf-hub:OWNER/NAME`)."""
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        close = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:10]
        raise BackboneError(
            f"timm has no model {name!r}; similar names: {close}. timm.list_models() has them all."
        )
    arguments: dict[str, Any] = {}
    state = None
    if config.weights not in ("pretrained", "random"):
        state = read_state_dict(config.weights)
        head = timm.get_pretrained_cfg(name)
        classifier = str(getattr(head, "classifier", None) or "head")
        arguments["num_classes"] = classes_in(state, classifier, getattr(head, "num_classes", 1000))
    if config.image_size is not None and _takes_image_size(name):
        arguments["img_size"] = config.image_size
    model: Any = timm.create_model(name, pretrained=config.weights == "pretrained", **arguments)
    if state is not None:
        load_weights(model, state, config.weights)
    return LoadedModel(module=model, transform=timm_transform(model, config), output=_output(model))


def _takes_image_size(name: str) -> bool:
    """Whether the architecture fixes its input size on construction (ViTs, Swin)."""
    cfg = timm.get_pretrained_cfg(name)
    return bool(cfg is not None and getattr(cfg, "fixed_input_size", False))


def timm_transform(model: Any, config: BackboneConfig) -> EvaluationTransform:
    """timm's evaluation transform in our numbers (`timm.data.create_transform`)."""
    data = timm.data.resolve_model_data_config(model)
    size = (config.image_size,) * 2 if config.image_size else tuple(data["input_size"][1:])
    scaled = tuple(math.floor(side / data["crop_pct"]) for side in size)
    squash = data["crop_mode"] == "squash" or scaled[0] != scaled[1]
    return EvaluationTransform(
        resize=scaled if squash else scaled[0],
        crop=size,
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )


def _output(model: Any) -> LayerOutput:
    prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
    has_class = bool(
        getattr(model, "has_class_token", getattr(model, "cls_token", None) is not None)
    )
    return LayerOutput(
        prefix_tokens=prefix,
        class_token=prefix > 0 and has_class,
        channels_last=str(getattr(model, "output_fmt", "NCHW")).upper().endswith("NHWC"),
    )
