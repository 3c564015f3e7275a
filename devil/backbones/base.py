"""A frozen vision model whose named layers come out as (batch, channels, height, width) maps.

Hooks read the layers' outputs, and one `LayerOutput` per architecture says how its tensors are
laid out. Loading by name is left to `registry` and the loaders.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from devil.errors import LayerError
from devil.images import EvaluationTransform
from devil.types import LayerFeatures, LayerShape


@dataclass(frozen=True, kw_only=True)
class LayerOutput:
    """How the tensors inside an architecture are laid out."""

    prefix_tokens: int = 0
    """Leading tokens of a (batch, token, channels) output that are no patches."""
    class_token: bool = False
    """The first of them is a class token."""
    channels_last: bool = False
    """Four-dimensional outputs are (batch, height, width, channels)."""
    batch_first: bool = True
    """Three-dimensional outputs are (batch, token, channels), not (token, batch, channels)."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """What a loader hands over: the vision tower, run by `forward`, and how to read it."""

    module: nn.Module
    transform: EvaluationTransform
    output: LayerOutput
    default_layers: tuple[str, ...] = ()
    """Empty: the last module of up to four stages, found by `stage_layers`."""
    forward: Callable[[Tensor], Any] | None = None
    """How the module is run on a batch of images; None: it is called."""


class Backbone(nn.Module):
    """A frozen vision model with named layers.

    Attributes:
        name: the name it was loaded by.
        layers: names of the explained layers, in the order asked.
        shapes: each layer's (channels, height, width).
        transform: the model's own evaluation transform, RGB picture → tensor.
    """

    def __init__(self, name: str, loaded: LoadedModel, layers: Sequence[str] = ()) -> None:
        """Hook `layers` (empty: the default list) of a loaded model.

        Raises:
            LayerError: a name does not exist, or its output is no feature map.
        """
        super().__init__()
        self.name = name
        self.module = loaded.module.eval().requires_grad_(False)
        self.transform = loaded.transform
        self._output = loaded.output
        self._run = loaded.forward or self.module
        self._outputs: dict[str, Tensor] = {}
        self.layers = tuple(layers) or loaded.default_layers or stage_layers(self.module)
        modules = dict(self.module.named_modules())
        unknown = [layer for layer in self.layers if layer not in modules or not layer]
        if unknown:
            raise LayerError(
                f"{name} has no layer {unknown}; its layers: {', '.join(filter(None, modules))}."
            )
        for layer in self.layers:
            modules[layer].register_forward_hook(self._keep(layer))
        self.shapes, self.has_class_token = self._probe()

    def _keep(self, layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            self._outputs[layer] = output

        return hook

    def _probe(self) -> tuple[dict[str, LayerShape], bool]:
        """Run one blank image and read each layer's shape."""
        with torch.inference_mode():
            features = self(torch.zeros(1, 3, *self.transform.crop))
        shapes = {n: LayerShape(*map(int, f.map.shape[1:])) for n, f in features.items()}
        return shapes, all(f.class_token is not None for f in features.values())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode: the backbone is frozen."""
        return super().train(False)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Mapping[str, LayerFeatures]:
        """Feature maps of all layers from one pass.

        Returns:
            Per layer the map (batch, channels, height, width) and, where the architecture has
            one, the class token (batch, channels); float32, or the dtype of autocast.
        """
        self._outputs.clear()
        self._run(images)
        missing = [layer for layer in self.layers if layer not in self._outputs]
        if missing:
            raise LayerError(
                f"{self.name} does not run the layer {missing} on an image; choose a module that "
                "takes part in the forward pass."
            )
        size = (int(images.shape[2]), int(images.shape[3]))
        features = {n: self._features(n, self._outputs[n], size) for n in self.layers}
        self._outputs.clear()
        return features

    def _features(self, layer: str, output: Any, size: tuple[int, int]) -> LayerFeatures:
        while isinstance(output, tuple | list) and len(output):
            output = output[0]
        if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4):
            raise LayerError(
                f"{self.name}: the output of {layer!r} is {_describe(output)}, no feature map; "
                "choose a block, stage or convolution."
            )
        if output.ndim == 4:
            return LayerFeatures(
                output.movedim(-1, 1) if self._output.channels_last else output, None
            )
        if output.ndim == 2:
            return LayerFeatures(output[:, :, None, None], None)
        return self._split_tokens(layer, output, size)

    def _split_tokens(self, layer: str, output: Tensor, size: tuple[int, int]) -> LayerFeatures:
        tokens = output if self._output.batch_first else output.transpose(0, 1)
        patches = tokens[:, self._output.prefix_tokens :]
        height, width = _grid(patches.shape[1], size)
        if height * width != patches.shape[1] or not height:
            raise LayerError(
                f"{self.name}: {layer!r} gives {patches.shape[1]} tokens, which fill no grid of "
                f"the input's aspect {size}; choose a transformer block."
            )
        grid = patches.transpose(1, 2).unflatten(2, (height, width))
        return LayerFeatures(grid, tokens[:, 0] if self._output.class_token else None)

    def digest(self) -> str:
        """SHA-256 over names, shapes and values of all weights: equal digests, equal backbones."""
        return weights_digest(self.module)


def weights_digest(module: nn.Module) -> str:
    """SHA-256 (first 16 hex digits) over names, dtypes, shapes and bytes of a module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()[:16]


def _grid(tokens: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a token grid over an input of `size` (height, width)."""
    height = round(math.sqrt(tokens * size[0] / size[1]))
    return height, tokens // height if height else 0


def _describe(output: Any) -> str:
    shape = getattr(output, "shape", None)
    return f"a {type(output).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")


STAGE_PATTERNS = (
    "layer{}",
    "stages.{}",
    "layers.{}",
    "trunk.stages.{}",
    "encoder.stages.{}",
    "encoder.layers.{}",
    "blocks.{}",
    "trunk.blocks.{}",
    "transformer.resblocks.{}",
    "encoder.layer.{}",
    "layer.{}",
    "encoder.layers.encoder_layer_{}",
    "vision_model.encoder.layers.{}",
    "features.{}",
)
"""Where families keep their stages or blocks; the first that exists counts."""


def stage_layers(module: nn.Module, count: int = 4) -> tuple[str, ...]:
    """A short default list: up to `count` stages or blocks, evenly spaced, the last included.

    Raises:
        LayerError: the architecture keeps its stages elsewhere; name the layers.
    """
    names = [name for name, _ in module.named_modules()]
    known = set(names)
    for pattern in STAGE_PATTERNS:
        found = [pattern.format(i) for i in range(200) if pattern.format(i) in known]
        if len(found) > 1:
            picks = [math.ceil((i + 1) * len(found) / count) - 1 for i in range(count)]
            return tuple(found[i] for i in sorted(set(picks)) if i >= 0)
    raise LayerError(
        "no default layers are known for this architecture; name them out of: "
        f"{', '.join(filter(None, names))}."
    )
