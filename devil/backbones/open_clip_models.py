"""open_clip image towers (`open_clip:ViT-B-32/openai`, `open_clip:RN50/openai`)."""

from typing import Any

import open_clip

from devil.backbones.base import LayerOutput, LoadedModel
from devil.backbones.timm_models import _output as timm_output
from devil.backbones.weights import load_weights, read_state_dict
from devil.config import BackboneConfig
from devil.errors import BackboneError
from devil.images import EvaluationTransform


def load_open_clip(name: str, config: BackboneConfig) -> LoadedModel:
    """Build the image tower; `NAME/TAG` chooses open_clip's pretrained weights."""
    architecture, _, tag = name.partition("/")
    known = open_clip.list_models()
    if architecture not in known:
        close = [m for m in known if m.lower()[:4] == architecture.lower()[:4]] or known
        raise BackboneError(
            f"open_clip has no architecture {architecture!r}; similar names: {close[:20]}."
        )
    if config.weights == "pretrained" and not tag:
        raise BackboneError(
            f"open_clip:{name} names no weights; its tags: "
            f"{open_clip.list_pretrained_tags_by_model(architecture)}, as in "
            f"open_clip:{architecture}/TAG; or give weights=PATH or weights='random'."
        )
    model: Any = open_clip.create_model(
        architecture,
        pretrained=tag if config.weights == "pretrained" else None,
        force_quick_gelu=tag == "openai",
        force_image_size=config.image_size,
        # The whole model is built and its text tower dropped below; towers share no weights.
    )
    if config.weights not in ("pretrained", "random"):
        _load_local(model, config.weights)
    return LoadedModel(
        module=model.visual,
        transform=_transform(model.visual),
        output=_output(model.visual),
    )


def _load_local(model: Any, path: str) -> None:
    """A state dict of the whole model, or of the image tower with or without `visual.`."""
    state = read_state_dict(path)
    visual = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
    load_weights(model.visual, visual or state, path)


def _transform(visual: Any) -> EvaluationTransform:
    settings = visual.preprocess_cfg
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    squash = settings["resize_mode"] == "squash" or height != width
    return EvaluationTransform(
        resize=(height, width) if squash else height,
        crop=(height, width),
        interpolation=settings["interpolation"],
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )


def _output(visual: Any) -> LayerOutput:
    trunk = getattr(visual, "trunk", None)
    if trunk is not None:  # a timm model inside
        return timm_output(trunk)
    if hasattr(visual, "class_embedding"):
        batch_first = bool(getattr(visual.transformer, "batch_first", True))
        return LayerOutput(prefix_tokens=1, class_token=True, batch_first=batch_first)
    return LayerOutput()
