"""Vision models of transformers, from the hub or a folder (`transformers:facebook/dinov2-base`)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from devil.backbones.base import LoadedModel
from devil.backbones.layout import LayerOutput
from devil.backbones.weights import check_fit, read_state_dict
from devil.config import BackboneConfig
from devil.errors import BackboneError
from devil.images import RESAMPLING, EvaluationTransform

NAMES = {number: name for name, number in RESAMPLING.items()}
"""Image processors write Pillow's numbers."""

TOLERANCE = 0.02
"""Processors resize tensors, we resize pictures: largest mean difference, in shares of white."""


def load_transformers(name: str, config: BackboneConfig) -> LoadedModel:
    """Build from `name`: a hub id, or a folder with `config.json` and `preprocessor_config.json`.

    Models with several towers (CLIP, SigLIP, ...) give their vision tower. A local state dict may
    be of the tower, or of a larger model around it.
    """
    settings: Any = AutoConfig.from_pretrained(name)
    if config.weights == "pretrained":
        model: Any = AutoModel.from_pretrained(name, dtype=torch.float32)
    else:
        model = AutoModel.from_config(settings)
    tower = getattr(model, "vision_model", model)
    if config.weights not in ("pretrained", "random"):
        tower = _load_local(tower, config.weights)
    return LoadedModel(
        module=tower, transform=_transform(name, config), output=_output(tower, tower.config)
    )


def _load_local(tower: Any, path: str) -> Any:
    """The tower with weights from a file, by transformers' own rules for renamed tensors."""
    loaded, report = type(tower).from_pretrained(
        None,
        config=tower.config,
        state_dict=read_state_dict(path),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
    )
    # The file may be of a larger model: what it has outside the tower is no fault. The pooler is
    # a head that many files lack, and no layer needs it.
    inner = [k.removeprefix(f"{tower.base_model_prefix}.") for k in report["unexpected_keys"]]
    inner = [k.removeprefix("vision_model.") for k in inner]
    parts = {name for name, _ in tower.named_children()}
    check_fit(
        f"weights {path} do not fit {type(tower).__name__}",
        missing=[k for k in report["missing_keys"] if not k.startswith("pooler.")],
        unexpected=[k for k in inner if k.split(".")[0] in parts],
        shapes={k: (tuple(ours), tuple(theirs)) for k, ours, theirs in report["mismatched_keys"]},
    )
    return loaded


def _transform(name: str, config: BackboneConfig) -> EvaluationTransform:
    if Path(name).is_dir() and not (Path(name) / "preprocessor_config.json").is_file():
        raise BackboneError(
            f"folder {name} has no preprocessor_config.json, so the evaluation transform is "
            "unknown; save the image processor beside the model."
        )
    processor: Any = AutoImageProcessor.from_pretrained(name)
    processor = getattr(processor, "image_processor", processor)
    resize, crop = _sizes(processor)
    # Some processors scale pixels by another factor than 1 / 255, or not at all.
    scale = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    mean: Any = processor.image_mean if processor.do_normalize else (0.0, 0.0, 0.0)
    std: Any = processor.image_std if processor.do_normalize else (1.0, 1.0, 1.0)
    transform = EvaluationTransform(
        resize=resize,
        crop=crop,
        interpolation=NAMES[Image.Resampling(int(processor.resample))],
        mean=(mean[0] / scale, mean[1] / scale, mean[2] / scale),
        std=(std[0] / scale, std[1] / scale, std[2] / scale),
        round_down=True,
    )
    _check_transform(name, transform, processor)
    return transform.resized(config.image_size) if config.image_size else transform


def _sizes(processor: Any) -> tuple[int | tuple[int, int], tuple[int, int]]:
    """What a processor resizes to, and its crop."""
    size = processor.size
    short = size.get("shortest_edge")
    square = (short, short) if short else (size["height"], size["width"])
    if getattr(processor, "do_center_crop", False):
        crop = processor.crop_size
        return short or square, (crop["height"], crop["width"])
    percentage = getattr(processor, "crop_pct", None)
    if short and percentage and short < 384:  # ConvNeXt: a centre crop below 384 pixels
        return int(short / percentage), square
    return square, square


def _check_transform(name: str, transform: EvaluationTransform, processor: Any) -> None:
    """Compare with the processor on a picture of soft colours: some do more than we can say."""
    ramp = np.linspace(0, 255, 300, dtype=np.float32)
    channels = [np.tile(ramp, (200, 1)), np.tile(ramp[::-1], (200, 1)), np.full((200, 300), 90.0)]
    channels[2][:, :100] += np.linspace(100, 0, 200)[:, None]
    picture = Image.fromarray(np.stack(channels, 2).astype(np.uint8))
    theirs = processor(pil_to_tensor(picture), return_tensors="pt")["pixel_values"][0]
    ours = transform(picture)
    difference = float("inf")
    if theirs.shape == ours.shape:
        std = torch.tensor(transform.std)[:, None, None]
        difference = float(((theirs - ours) * std).abs().mean())
    if difference > TOLERANCE:
        raise BackboneError(
            f"transformers:{name}: {type(processor).__name__} transforms pictures in a way that "
            "is not a resize, a centre crop and a normalisation; choose the same architecture in "
            "timm or torchvision."
        )


def _output(tower: Any, settings: Any) -> LayerOutput:
    names = [name.rpartition(".")[2] for name, _ in tower.named_parameters()]
    has_class = "cls_token" in names or "class_embedding" in names
    registers = int(getattr(settings, "num_register_tokens", 0) or 0)
    prefix = int(has_class) + int("distillation_token" in names) + registers
    return LayerOutput(prefix_tokens=prefix, class_token=has_class)
