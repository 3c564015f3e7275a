"""Maps for a class of a classifier, as rivals and controls of DeViL's maps.

Grad-CAM (Selvaraju et al., arXiv 1610.02391) by the library `grad-cam`: channels of a layer,
weighted by the mean gradient of the class logit, summed, negative values cut. The classifier is a
backbone that was loaded with its head. `random_map` and `centre_map` know nothing of the picture.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor, nn

from devil.backbones import Backbone
from devil.errors import BackboneError, DataError
from devil.pooling import row_generator

INPUT_NORMS = ("norm1", "ln_1", "layernorm_before")
"""What libraries call the norm at the entrance of a Transformer block."""
CENTRE_WIDTH = 0.25
"""Standard deviation of the centre map, as a share of the map's side."""

Classes = int | Sequence[int]
"""One class, or several that count as one."""


def class_count(backbone: Backbone) -> int:
    """How many classes a backbone's head tells apart.

    Raises:
        BackboneError: the backbone has no classification head.
    """
    library = backbone.name.partition(":")[0]
    count = 0
    if library == "timm":
        count = int(getattr(backbone.module, "num_classes", 0) or 0)
    elif library == "torchvision":
        # Every family ends with its head, a Linear or a 1 × 1 convolution.
        for module in backbone.module.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                count = int(module.weight.shape[0])
    if count < 1:
        raise BackboneError(
            f"{backbone.name} has no classification head; maps of classes need a timm or "
            "torchvision classifier whose weights include its head."
        )
    return count


def grad_cam_layer(backbone: Backbone, layer: str | None = None) -> str:
    """The module at which Grad-CAM is taken in the place of an explained layer.

    Behind the last block of a ViT that classifies by its class token, no patch token has a
    gradient: the head reads the class token alone. Grad-CAM is therefore taken at the norm where a
    block begins (`blocks.11.norm1` for `blocks.11`), as the library `grad-cam` advises for ViTs.
    Layers without a class token stay as they are.

    Args:
        backbone: The classifier.
        layer: One of its layers; None: the last.

    Raises:
        LayerError: the layer does not exist or is no map.
    """
    layer = layer or backbone.layers[-1]
    if not backbone.layout(layer).class_token:
        return layer
    names = [f"{layer}.{norm}" for norm in INPUT_NORMS]
    known = dict(backbone.module.named_modules())
    return next((name for name in names if name in known), layer)


class _Logits(nn.Module):
    """The classifier as Grad-CAM calls it; with frozen weights, its input asks for gradients."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone.model_output(images.detach().clone().requires_grad_())


class _ClassScore:
    """The logit of a class; for several, log Σ exp of their logits (of their joint probability)."""

    def __init__(self, classes: Classes) -> None:
        self.classes = [classes] if isinstance(classes, int) else list(classes)

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[self.classes].logsumexp(dim=0)


@cache
def _grid_cam() -> type:
    """The library's Grad-CAM without its upsampling to the input's size."""
    from pytorch_grad_cam import GradCAM  # its import draws random numbers

    class GridCam(GradCAM):
        def get_target_width_height(self, input_tensor: Tensor) -> tuple[int, int]:
            rows, columns = self.activations_and_grads.activations[0].shape[2:]
            return int(columns), int(rows)

    return GridCam


def grad_cam(
    backbone: Backbone,
    images: Float[Tensor, "batch 3 height width"],
    classes: Sequence[Classes],
    layer: str | None = None,
) -> Float[np.ndarray, "batch rows columns"]:
    """Grad-CAM of one class for each picture, on the layer's own grid.

    Args:
        backbone: The classifier.
        images: Transformed pictures.
        classes: For each picture a class's index, or several indices that count as one class.
        layer: Name of any module that puts out maps or tokens; None: `grad_cam_layer`.

    Returns:
        float32, each map in [0, 1] (its least value is 0, its largest about 1); all 0 where no
        channel speaks for the class.

    Raises:
        BackboneError: the backbone has no classification head, or its layer no gradient.
        LayerError: the layer does not exist or is no map.
        DataError: a class is not among the head's, or there is not one for each picture.
    """
    layer = layer or grad_cam_layer(backbone)
    layout = backbone.layout(layer)
    _check_classes(classes, len(images), class_count(backbone))
    size = (int(images.shape[2]), int(images.shape[3]))

    def as_map(output: Tensor) -> Tensor:
        # Cloned, for a ReLU in place behind the layer would write into what is kept.
        return layout.read(output, size).map.clone()

    module = backbone.module.get_submodule(layer)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        _grid_cam()(_Logits(backbone), [module], as_map) as cam,
    ):
        targets: list[nn.Module] = [_ClassScore(c) for c in classes]  # type: ignore[misc]
        return np.asarray(cam(images.to(backbone.device), targets), np.float32)


def _check_classes(classes: Sequence[Classes], images: int, count: int) -> None:
    if len(classes) != images:
        raise DataError(f"{images} pictures have {len(classes)} classes; give one for each.")
    for entry in classes:
        indices = [entry] if isinstance(entry, int) else list(entry)
        if not indices or not all(0 <= index < count for index in indices):
            raise DataError(f"class {entry!r} is not among the head's {count} (0 to {count - 1}).")


def random_map(grid: tuple[int, int], key: str, seed: int = 0) -> Float[np.ndarray, "rows columns"]:
    """Uniform noise in [0, 1) that depends on the seed and a picture's key alone; float32."""
    return torch.rand(*grid, generator=row_generator(seed, key)).numpy()


def centre_map(
    grid: tuple[int, int], width: float = CENTRE_WIDTH
) -> Float[np.ndarray, "rows columns"]:
    """A Gaussian in the middle of the map; float32, at most 1.

    Args:
        grid: Rows and columns.
        width: Standard deviation, as a share of the map's sides.
    """
    down, along = (((np.arange(n) + 0.5) / n - 0.5) / width for n in grid)
    return np.exp(-(down[:, None] ** 2 + along[None, :] ** 2) / 2).astype(np.float32)


@cache
def imagenet_names() -> tuple[str, ...]:
    """Plain names of the 1,000 ImageNet classes: the first lemma, in lower case, without
    underscores.

    Two names stand for two classes each (`crane`, `maillot`), as in WordNet.
    """
    descriptions = ImageNetInfo("imagenet-1k").label_descriptions()
    return tuple(text.split(",")[0].replace("_", " ").strip().lower() for text in descriptions)
