"""Maps of every family: right shapes, right axes, right way round; frozen; equal digests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from devil.backbones import Backbone, load_backbone
from devil.config import BackboneConfig
from devil.errors import BackboneError, LayerError


class Family(NamedTuple):
    """A model on small images, and what its default layers must be."""

    name: str
    image_size: int
    layers: str
    numbers: tuple[int, ...]
    """What `{}` in `layers` stands for."""
    channels: tuple[int, ...]
    sides: tuple[int, ...]
    prefix: int | None = None
    """Tokens before the patches; None: the module gives maps."""
    class_token: bool = False
    channels_last: bool = False


STEPS = (16, 8, 4, 2)
FIRST, SECOND, QUARTERS = (0, 1, 2, 3), (1, 3, 5, 7), (2, 5, 8, 11)
RESNET = ("layer{}", (1, 2, 3, 4), (256, 512, 1024, 2048), STEPS)
FIRE = ("features.{}", (4, 7, 9, 12), (128, 256, 384, 512), (14, 7, 7, 3))
WIDE = (96, 192, 384, 768)
TINY, BASE, SMALL = (((width,) * 4, (side,) * 4) for width, side in ((192, 4), (768, 4), (32, 8)))
FAMILIES = [
    Family("torchvision:resnet50", 64, *RESNET),
    Family("torchvision:squeezenet1_0", 64, *FIRE),
    Family("torchvision:swin_t", 64, "features.{}", SECOND, WIDE, STEPS, channels_last=True),
    Family("torchvision:convnext_tiny", 64, "features.{}", SECOND, WIDE, STEPS),
    Family("torchvision:vit_b_16", 64, "encoder.layers.encoder_layer_{}", QUARTERS, *BASE, 1, True),
    Family("open_clip:ViT-B-32", 128, "transformer.resblocks.{}", QUARTERS, *BASE, 1, True),
    Family("open_clip:RN50", 64, *RESNET),
    Family("open_clip:convnext_tiny", 64, "trunk.stages.{}", FIRST, WIDE, STEPS),
    Family("timm:vit_tiny_patch16_224", 64, "blocks.{}", QUARTERS, *TINY, 1, True),
    Family("timm:deit_tiny_distilled_patch16_224", 64, "blocks.{}", QUARTERS, *TINY, 2, True),
    Family("timm:resnet50", 64, *RESNET),
    Family("timm:convnext_atto", 64, "stages.{}", FIRST, (40, 80, 160, 320), STEPS),
    Family(
        "timm:swin_tiny_patch4_window7_224",
        224,
        "layers.{}",
        FIRST,
        WIDE,
        (56, 28, 14, 7),
        channels_last=True,
    ),
    Family("transformers:dinov2", 64, "encoder.layer.{}", SECOND, *SMALL, 1, True),
    Family("transformers:registers", 64, "encoder.layer.{}", SECOND, *SMALL, 5, True),
    Family("transformers:vit", 64, "layers.{}", SECOND, *SMALL, 1, True),
    Family("transformers:clip", 64, "encoder.layers.{}", SECOND, *SMALL, 1, True),
    Family("transformers:siglip", 64, "encoder.layers.{}", SECOND, *SMALL, 0),
    # Its stages end by merging patches: the last block has the stage's own grid.
    Family(
        "transformers:swin", 64, "encoder.layers.{}.blocks.1", FIRST, (16, 32, 64, 128), STEPS, 0
    ),
    Family("transformers:convnext", 64, "encoder.stages.{}", FIRST, (8, 12, 20, 24), STEPS),
]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def case(
    request: pytest.FixtureRequest, hub_folder: Callable[[str], Path]
) -> Iterator[tuple[Family, Backbone]]:
    family = request.param
    library, _, kind = family.name.partition(":")
    name = f"transformers:{hub_folder(kind)}" if library == "transformers" else family.name
    config = BackboneConfig(name=name, weights="random", image_size=family.image_size)
    yield family, load_backbone(config)


def images(backbone: Backbone, count: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *backbone.transform.crop, generator=generator)


def change(backbone: Backbone, batch: Tensor) -> Tensor:
    """Per layer's first map: where it changes when the top right of the input does."""
    height, width = batch.shape[2:]
    altered = batch.clone()
    altered[:, :, : height // 8, -(width // 8) :] += 2.0
    layer = backbone.layers[0]
    with torch.inference_mode():
        return (backbone(altered)[layer].map - backbone(batch)[layer].map).norm(dim=1)[0]


def test_default_layers_and_shapes(case: tuple[Family, Backbone]) -> None:
    family, backbone = case
    assert backbone.layers == tuple(family.layers.format(n) for n in family.numbers)
    expected = zip(family.channels, family.sides, family.sides, strict=True)
    assert list(backbone.shapes.values()) == list(expected)
    assert backbone.has_class_token == family.class_token


def test_maps_are_the_modules_own_values(case: tuple[Family, Backbone]) -> None:
    family, backbone = case
    own: dict[str, Tensor] = {}

    def keep(layer: str) -> Callable:
        def hook(module: nn.Module, arguments: tuple, output: Tensor | tuple) -> None:
            own[layer] = (output if isinstance(output, Tensor) else output[0]).clone()

        return hook

    hooks = [
        backbone.module.get_submodule(layer).register_forward_hook(keep(layer))
        for layer in backbone.layers
    ]
    with torch.inference_mode():
        features = backbone(images(backbone))
    for hook in hooks:
        hook.remove()
    for layer, shape in backbone.shapes.items():
        features_of = features[layer]
        assert features_of.map.shape == (1, *shape)
        if family.prefix is not None:
            tokens = features_of.map.flatten(2).transpose(1, 2)
            torch.testing.assert_close(tokens, own[layer][:, family.prefix :], rtol=0, atol=0)
        else:
            order = (0, 3, 1, 2) if family.channels_last else (0, 1, 2, 3)
            torch.testing.assert_close(features_of.map, own[layer].permute(order), rtol=0, atol=0)
        if family.class_token:
            torch.testing.assert_close(features_of.class_token, own[layer][:, 0], rtol=0, atol=0)
        else:
            assert features_of.class_token is None


def test_a_change_top_right_shows_top_right(case: tuple[Family, Backbone]) -> None:
    _, backbone = case
    where = change(backbone, images(backbone))
    row, column = divmod(int(where.argmax()), where.shape[1])
    assert row < where.shape[0] / 4 and column >= where.shape[1] * 3 / 4, (row, column)


@pytest.mark.parametrize("kind", ["dinov2", "swin"])
def test_token_maps_of_wide_images(kind: str, hub_folder: Callable[[str], Path]) -> None:
    backbone = load_backbone(
        BackboneConfig(name=f"transformers:{hub_folder(kind)}", weights="random")
    )
    where = change(backbone, torch.randn(1, 3, 64, 128))
    height, width = backbone.shapes[backbone.layers[0]][1:]
    assert where.shape == (height, 2 * width)
    assert divmod(int(where.argmax()), 2 * width)[0] < height / 4
    assert divmod(int(where.argmax()), 2 * width)[1] >= 2 * width * 3 / 4


VIT = BackboneConfig(name="timm:test_vit", weights="random")


def test_batched_equals_one_by_one() -> None:
    backbone = load_backbone(VIT)
    batch = images(backbone, 3)
    together = backbone(batch)
    for index in range(3):
        alone = backbone(batch[index : index + 1])
        for layer in backbone.layers:
            torch.testing.assert_close(alone[layer].map[0], together[layer].map[index])


def test_a_layer_that_the_next_overwrites_is_kept() -> None:
    name = "torchvision:squeezenet1_0"  # features.1 is an in-place ReLU
    config = BackboneConfig(name=name, weights="random", layers=("features.0",), image_size=64)
    backbone = load_backbone(config)
    batch = images(backbone)
    expected = backbone.module.get_submodule("features.0")(batch)
    assert expected.min() < 0
    torch.testing.assert_close(backbone(batch)["features.0"].map, expected)


def test_inner_layers_have_their_own_layout() -> None:
    """Swin is channels-last inside, but not its first convolution, nor its windows."""
    name = "timm:swin_tiny_patch4_window7_224"
    config = BackboneConfig(name=name, weights="random", layers=("patch_embed.proj", "norm"))
    shapes = load_backbone(config).shapes
    assert list(shapes.values()) == [(96, 56, 56), (768, 7, 7)]
    windows = BackboneConfig(name=name, weights="random", layers=("layers.0.blocks.0.attn",))
    with pytest.raises(LayerError, match=r"attn.*no feature map .*\(128, 49, 96\) for 2 images"):
        load_backbone(windows)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("blocks.0.attn.q_norm", "no feature map"),
        ("block.3", r"no layer \['block.3'\].*Similar names: blocks.3.*Its layers:.*blocks.5"),
    ],
)
def test_layers_that_are_no_maps(layer: str, message: str) -> None:
    with pytest.raises(LayerError, match=message) as caught:
        load_backbone(BackboneConfig(name=VIT.name, weights="random", layers=("blocks.0", layer)))
    assert len(str(caught.value)) < 2500


def test_a_layer_that_is_never_run(hub_folder: Callable[[str], Path]) -> None:
    name = f"transformers:{hub_folder('dinov2')}"
    with pytest.raises(LayerError, match=r"'encoder.layer' gives no feature map.*takes no part"):
        load_backbone(BackboneConfig(name=name, weights="random", layers=("encoder.layer",)))


def test_scrambled_tokens_are_refused() -> None:
    with pytest.raises(BackboneError, match="raster order"):
        load_backbone(BackboneConfig(name="timm:hiera_tiny_224", weights="random"))


def test_frozen() -> None:
    backbone = load_backbone(BackboneConfig(name="timm:test_resnet", weights="random"))
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    before = backbone.digest()
    backbone(images(backbone, 2))  # batch norm would update its statistics
    assert backbone.digest() == before


def test_digest_tells_weights_apart() -> None:
    first, again = load_backbone(VIT), load_backbone(VIT)
    assert first.digest() == again.digest()
    with torch.no_grad():
        next(again.module.parameters()).view(-1)[0] += 1e-3
    assert first.digest() != again.digest()


@pytest.mark.parametrize(
    ("name", "together"), [("torchvision:resnet18", True), ("timm:vit_tiny_patch16_224", False)]
)
def test_channels_lie_together_where_convolutions_read_them(name: str, together: bool) -> None:
    backbone = load_backbone(BackboneConfig(name=name, weights="random", image_size=64))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    kernel = next(m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)).weight
    assert kernel.is_contiguous(memory_format=torch.channels_last) is together
    found = backbone(images)
    backbone.module.to(memory_format=torch.contiguous_format)
    backbone._order = torch.contiguous_format
    for layer, expected in backbone(images).items():
        torch.testing.assert_close(found[layer].map, expected.map, rtol=1e-4, atol=1e-4)
