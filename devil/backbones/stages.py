"""Which layers are explained when nobody names any: up to four, the last included.

CNNs and hierarchical transformers give the ends of their stages; plain transformers give the
blocks at a quarter, half, three quarters and the whole of their depth.
"""

import difflib
from collections.abc import Sequence

from torch import nn

from devil.errors import LayerError

COUNT = 4
"""Layers in a default list."""
LISTED = 60
"""Names in an error message."""

STAGE_PATTERNS = (
    "layer{}",
    "layers.{}",
    "blocks.{}",
    "stages.{}",
    "encoder.stages.{}",
    "encoder.layers.{}",
    "encoder.layer.{}",
    "layer.{}",
    "encoder.layers.encoder_layer_{}",
    "transformer.resblocks.{}",
    "model.layer.{}",
    "trunk_output.block{}",
    "features.denseblock{}",
    "stage{}",
    "features.{}",
)
"""Where families keep their stages or blocks; the first with several counts."""


def spread(names: Sequence[str], count: int = COUNT) -> tuple[str, ...]:
    """`count` of `names`, evenly spaced, the last included; all where there are no more."""
    if len(names) <= count:
        return tuple(names)
    return tuple(names[-(-(i + 1) * len(names) // count) - 1] for i in range(count))


def stage_layers(module: nn.Module) -> tuple[str, ...]:
    """The default layers of an architecture, or () where it keeps its stages elsewhere."""
    modules = dict(module.named_modules())
    for pattern in STAGE_PATTERNS:
        # Names may start at 0 or 1, or leave numbers out.
        numbered = [pattern.format(i) for i in range(200)]
        found = [name for name in numbered if name in modules]
        # A stage is built of parts; a lone convolution, pooling or norm is none. Plain networks
        # (AlexNet, VGG) have no stages: there a layer ends with its activation.
        stages = [name for name in found if len(list(modules[name].children()))]
        stages = stages or [name for name in found if isinstance(modules[name], nn.ReLU)]
        if len(stages) > 1:
            return spread([_stage_end(name, modules[name]) for name in stages])
    return ()


def _stage_end(name: str, stage: nn.Module) -> str:
    """The last block of a list of blocks, or of a stage that ends by merging patches (Swin)."""
    if isinstance(stage, nn.ModuleList):
        return f"{name}.{len(stage) - 1}"
    blocks = getattr(stage, "blocks", None)
    if hasattr(stage, "downsample") and isinstance(blocks, nn.ModuleList) and len(blocks):
        return f"{name}.blocks.{len(blocks) - 1}"
    return name


def check_layers(backbone: str, module: nn.Module, layers: Sequence[str]) -> None:
    """Raise a `LayerError` that lists the right names if one of `layers` does not exist."""
    names = [name for name, _ in module.named_modules() if name]
    unknown = [layer for layer in layers if layer not in names]
    if layers and not unknown:
        return
    problem = f"has no layer {unknown}" if unknown else "has no default layers; name some"
    close = [n for layer in unknown for n in difflib.get_close_matches(layer, names, 5)]
    similar = f" Similar names: {', '.join(dict.fromkeys(close))}." if close else ""
    shown, depth = names, max(name.count(".") for name in names)
    while len(shown) > LISTED and depth > 0:
        depth -= 1
        shown = [name for name in names if name.count(".") <= depth]
    inside = f", and {len(names) - len(shown)} inside these" if len(shown) < len(names) else ""
    raise LayerError(
        f"{backbone} {problem}.{similar} Its layers: {', '.join(shown)}{inside} "
        "(named_modules() of its `module` has them all)."
    )
