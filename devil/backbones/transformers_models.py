"""Vision models of transformers, from the hub or a folder (`transformers:facebook/dinov2-base`)."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from devil.backbones.base import LayerOutput, LoadedModel
from devil.backbones.weights import load_weights, read_state_dict
from devil.config import BackboneConfig
from devil.errors import BackboneError
from devil.images import EvaluationTransform

INTERPOLATION = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""PIL's resampling numbers, as image processors write them."""


def load_transformers(name: str, config: BackboneConfig) -> LoadedModel:
    """Build from `name`: a hub id, or a folder with `config.json` and `preprocessor_config.json`.

    Models with several towers (CLIP, SigLIP, ...) give their vision tower.
    """
    settings: Any = AutoConfig.from_pretrained(name)
    if config.weights == "pretrained":
        model: Any = AutoModel.from_pretrained(name, dtype=torch.float32)
    else:
        model = AutoModel.from_config(settings)
    model = getattr(model, "vision_model", model)
    settings = getattr(settings, "vision_config", settings)
    if config.weights not in ("pretrained", "random"):
        load_weights(model, read_state_dict(config.weights), config.weights)
    return LoadedModel(
        module=model,
        transform=_transform(name, settings, config),
        output=_output(model, settings),
        forward=lambda images: model(pixel_values=images),
    )


def _transform(name: str, settings: Any, config: BackboneConfig) -> EvaluationTransform:
    if Path(name).is_dir() and not (Path(name) / "preprocessor_config.json").is_file():
        raise BackboneError(
            f"folder {name} has no preprocessor_config.json, so the evaluation transform is "
            "unknown; save the image processor beside the model."
        )
    processor: Any = AutoImageProcessor.from_pretrained(name)
    size = dict(processor.size)
    resize = size.get("shortest_edge") or (size["height"], size["width"])
    crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
    if crop:
        target = (crop["height"], crop["width"])
    elif isinstance(resize, tuple):
        target = resize
    else:
        target = (resize, resize)
    if "shortest_edge" in size and not crop and getattr(processor, "crop_pct", None):
        # ConvNeXt below 384 px: resize to size / crop_pct, then crop to size.
        resize = int(resize / processor.crop_pct) if target[0] < 384 else target
    if config.image_size:
        factor = config.image_size / target[0]
        target = (config.image_size, config.image_size)
        resize = round(resize * factor) if isinstance(resize, int) else target
    plain = not getattr(processor, "do_normalize", True)
    return EvaluationTransform(
        resize=resize,
        crop=target,
        interpolation=INTERPOLATION[int(processor.resample)],
        mean=(0.0, 0.0, 0.0) if plain else tuple(processor.image_mean),
        std=(1.0, 1.0, 1.0) if plain else tuple(processor.image_std),
    )


def _output(model: Any, settings: Any) -> LayerOutput:
    names = [name for name, _ in model.named_parameters()]
    has_class = any(n.endswith(("cls_token", "class_embedding")) for n in names)
    extra = any(n.endswith("distillation_token") for n in names)
    registers = int(getattr(settings, "num_register_tokens", 0) or 0)
    return LayerOutput(prefix_tokens=int(has_class) + int(extra) + registers, class_token=has_class)
