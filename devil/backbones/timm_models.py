"""timm models: CNNs, ViTs, Swin, ConvNeXt, ... (`timm:vit_tiny_patch16_224`)."""

import difflib
import math
from typing import Any

import timm
from timm.data.config import resolve_model_data_config

from devil.backbones.base import LoadedModel
from devil.backbones.layout import LayerOutput
from devil.backbones.stages import spread, stage_layers
from devil.backbones.weights import load_weights, read_state_dict
from devil.config import BackboneConfig
from devil.errors import BackboneError
from devil.images import EvaluationTransform


def load_timm(name: str, config: BackboneConfig) -> LoadedModel:
    """Build a timm model; a hub repository is named as timm does (`timm:hf-hub:OWNER/NAME`)."""
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), 10, 0.5)
        raise BackboneError(
            f"timm has no model {name!r}; similar names: {close}. timm.list_models() has them all."
        )
    arguments: dict[str, Any] = {}
    state = None
    settings: Any = timm.get_pretrained_cfg(name)
    if config.weights not in ("pretrained", "random"):
        state = read_state_dict(config.weights)
        classifier = getattr(settings, "classifier", None) or "head"
        classifier = classifier if isinstance(classifier, str) else classifier[0]
        head = state.get(f"{classifier}.weight")
        arguments["num_classes"] = 0 if head is None else int(head.shape[0])
    # ViTs and Swin fix the size of their input on construction.
    if config.image_size is not None and getattr(settings, "fixed_input_size", False):
        arguments["img_size"] = config.image_size
    model: Any = timm.create_model(name, pretrained=config.weights == "pretrained", **arguments)
    if state is not None:
        load_weights(model, state, config.weights)
    return LoadedModel(
        module=model,
        transform=_transform(model, config),
        output=timm_output(model),
        default_layers=timm_layers(model),
    )


def _transform(model: Any, config: BackboneConfig) -> EvaluationTransform:
    """timm's evaluation transform in our numbers (`timm.data.create_transform`)."""
    data: Any = resolve_model_data_config(model)
    size = (config.image_size,) * 2 if config.image_size else data["input_size"][1:]
    height, width = (math.floor(side / data["crop_pct"]) for side in size)
    red, green, blue = (round(255 * value) for value in data["mean"])
    return EvaluationTransform(
        resize=(height, width) if data["crop_mode"] == "squash" else height,
        crop=(size[0], size[1]),
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        border=(red, green, blue) if data["crop_mode"] == "border" else None,
    )


def timm_output(model: Any) -> LayerOutput:
    """How a timm model lays out its tensors."""
    prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
    has_class = getattr(model, "has_class_token", getattr(model, "cls_token", None) is not None)
    return LayerOutput(
        prefix_tokens=prefix,
        class_token=prefix > 0 and bool(has_class),
        channels_last=str(getattr(model, "output_fmt", "NCHW")).upper().endswith("NHWC"),
    )


def timm_layers(model: Any) -> tuple[str, ...]:
    """A default list out of the stages, or blocks, that timm itself names as features."""
    entries = list(getattr(model, "feature_info", None) or [])
    names = [e.get("module", "") for e in entries if isinstance(e, dict)]
    known = dict(model.named_modules())
    return spread(names) if names and all(map(known.get, names)) else stage_layers(model)
