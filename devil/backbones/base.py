"""A frozen vision model whose named layers come out as (batch, channels, height, width) maps.

Hooks read the layers' outputs, `layout` tells their axes. Loading by name is left to `registry`
and the loaders.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from devil.backbones.layout import PROBES, LayerOutput, Layout, first_tensor
from devil.backbones.stages import check_layers, stage_layers
from devil.errors import BackboneError, LayerError
from devil.images import EvaluationTransform
from devil.types import LayerFeatures, LayerShape

UNORDERED = ("Hiera", "HieraModel")
"""Architectures whose tokens do not run row by row: their maps would be scrambled."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """What a loader hands over: the vision tower, and how to feed and read it."""

    module: nn.Module
    """Called with a batch of transformed images."""
    transform: EvaluationTransform
    """The model's own evaluation transform."""
    output: LayerOutput
    """How the tensors inside are laid out."""
    default_layers: tuple[str, ...] = ()
    """Empty: `stage_layers` finds them."""


class Backbone(nn.Module):
    """A frozen vision model with named layers. One call at a time: hooks share their memory.

    Attributes:
        name: the name it was loaded by.
        layers: names of the explained layers, in the order asked.
        shapes: each layer's (channels, height, width) at the transform's crop.
        transform: the model's own evaluation transform, RGB picture → tensor.
        module: the vision model itself, with its head where it has one.
        has_class_token: every layer comes with a class token.
    """

    def __init__(self, name: str, loaded: LoadedModel, layers: Sequence[str] = ()) -> None:
        """Hook `layers` (empty: the default list) of a loaded model.

        Raises:
            BackboneError: the architecture cannot be read as maps.
            LayerError: a name does not exist, or its output is no feature map.
        """
        super().__init__()
        self.name = name
        self._order = pixel_order(loaded.module)
        self.module = loaded.module.eval().requires_grad_(False).to(memory_format=self._order)
        self.transform = loaded.transform
        if type(self.module).__name__ in UNORDERED:
            raise BackboneError(
                f"{name}: {type(self.module).__name__} keeps its tokens out of raster order, so "
                "they form no map; choose another architecture."
            )
        self.layers = tuple(layers) or loaded.default_layers or stage_layers(self.module)
        check_layers(name, self.module, self.layers)
        self._outputs: dict[str, Any] = {}
        self._overwritten: frozenset[str] = frozenset()
        for layer in self.layers:
            self.module.get_submodule(layer).register_forward_hook(self._keep(layer))
        self._family = loaded.output
        self._layouts, self.shapes = self._probe(loaded.output)
        self.has_class_token = all(layout.class_token for layout in self._layouts.values())

    def _keep(self, layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            output = first_tensor(output)
            self._outputs[layer] = output.clone() if layer in self._overwritten else output

        return hook

    def _probe(self, family: LayerOutput) -> tuple[dict[str, Layout], dict[str, LayerShape]]:
        """Run blank images and find out each layer's layout and shape."""
        height, width = self.transform.crop
        if height != width:
            raise BackboneError(
                f"{self.name} takes images of {height} × {width} pixels; only square ones are "
                "supported. Set image_size, if the architecture allows another size."
            )
        # A fresh tensor counts its in-place changes. More than one after the module has returned
        # it means that the next module writes into it (ReLU(inplace=True)): it must be copied.
        versions: dict[str, int] = {}
        hooks = [
            self.module.get_submodule(layer).register_forward_hook(
                lambda module, arguments, output, layer=layer: versions.update(
                    {layer: getattr(first_tensor(output), "_version", 0)}
                )
            )
            for layer in self.layers
        ]
        with torch.no_grad():
            self.module(torch.zeros(PROBES, 3, height, width))
        for hook in hooks:
            hook.remove()
        layouts, shapes = {}, {}
        for layer in self.layers:
            output = self._outputs.get(layer)
            layout = Layout.of(output, family) if isinstance(output, Tensor) else None
            if layout is None or not isinstance(output, Tensor):
                raise _no_map(self.name, layer, output)
            layouts[layer] = layout
            shapes[layer] = LayerShape(*layout.read(output, (height, width)).map.shape[1:])
        self._overwritten = frozenset(
            layer for layer in self.layers if self._outputs[layer]._version != versions[layer]
        )
        self._outputs.clear()
        return layouts, shapes

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
        size = (int(images.shape[2]), int(images.shape[3]))
        features = {
            layer: self._layouts[layer].read(self._outputs[layer], size) for layer in self.layers
        }
        self._outputs.clear()
        return features

    def _run(self, images: Tensor) -> Any:
        return self.module(images.contiguous(memory_format=self._order))

    def model_output(self, images: Float[Tensor, "batch 3 height width"]) -> Any:
        """What the vision model itself returns: logits, where it was loaded with its head.

        Gradients flow to the images where they require them.
        """
        try:
            return self._run(images)
        finally:
            self._outputs.clear()

    def layout(self, layer: str) -> Layout:
        """How the output of any named module is laid out, explained or not.

        Raises:
            LayerError: the name does not exist, or its output is no feature map.
        """
        if layer in self._layouts:
            return self._layouts[layer]
        check_layers(self.name, self.module, (layer,))
        outputs: list[Any] = []
        hook = self.module.get_submodule(layer).register_forward_hook(
            lambda module, arguments, output: outputs.append(first_tensor(output))
        )
        height, width = self.transform.crop
        with torch.no_grad():
            self.model_output(torch.zeros(PROBES, 3, height, width, device=self.device))
        hook.remove()
        output = outputs[-1] if outputs else None
        layout = Layout.of(output, self._family) if isinstance(output, Tensor) else None
        if layout is None:
            raise _no_map(self.name, layer, output)
        return layout

    def digest(self) -> str:
        """SHA-256 over names, shapes and values of all weights: equal digests, equal backbones."""
        return weights_digest(self.module)


def pixel_order(module: nn.Module) -> torch.memory_format:
    """Whether pixels or channels lie together in memory: channels, where convolutions follow
    convolutions, which read whole pixels; one that cuts patches does not count.
    """
    wide = (m for m in module.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1)
    several = len(list(itertools.islice(wide, 2))) > 1
    return torch.channels_last if several else torch.contiguous_format


def weights_digest(module: nn.Module) -> str:
    """SHA-256 (first 16 hex digits) over names, dtypes, shapes and bytes of a module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()[:16]


def _no_map(name: str, layer: str, output: Any) -> LayerError:
    return LayerError(
        f"{name}: layer {layer!r} gives no feature map with a row per image, but "
        f"{_describe(output)}; choose a block, a stage or a convolution."
    )


def _describe(output: Any) -> str:
    if output is None:
        return "nothing, for it takes no part in the pass over an image"
    shape = f" of shape {tuple(output.shape)}" if isinstance(output, Tensor) else ""
    return f"a {type(output).__name__}{shape} for {PROBES} images"
