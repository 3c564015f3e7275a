"""Maps for classes: Grad-CAM against its equation, for CNNs and ViTs; maps that know nothing."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from devil import BackboneConfig, load_backbone
from devil.backbones import Backbone
from devil.errors import BackboneError, DataError, LayerError
from devil.evaluation.class_maps import (
    centre_map,
    class_count,
    grad_cam,
    grad_cam_layer,
    imagenet_names,
    random_map,
)
from devil.images import open_image


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    folder = tmp_path_factory.mktemp("classifiers")
    return {
        name: load_backbone(tiny.tiny_backbone_weights(folder, name))
        for name in ("test_resnet", "test_vit")
    }


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(0))


def plain_grad_cam(backbone: Backbone, image: Tensor, classes: list[int], layer: str) -> Tensor:
    """ReLU(Σ_k A_k · mean over locations of ∂y/∂A_k), one picture at a time."""
    kept: list[Tensor] = []
    hook = backbone.module.get_submodule(layer).register_forward_hook(
        lambda module, arguments, output: kept.append(output)
    )
    logits = backbone.module(image[None].clone().requires_grad_())[0]
    hook.remove()
    score = torch.log(sum(torch.exp(logits[c]) for c in classes))
    (gradient,) = torch.autograd.grad(score, kept[0])
    activation, size = kept[0], (tiny.SIDE, tiny.SIDE)
    layout = backbone.layout(layer)
    activation, gradient = layout.read(activation, size).map, layout.read(gradient, size).map
    weights = gradient[0].mean(dim=(1, 2))
    return (weights[:, None, None] * activation[0]).sum(0).clamp(min=0).detach()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("test_resnet", "layer4"),
        ("test_resnet", "layer2"),
        ("test_vit", "blocks.5.norm1"),
        ("test_vit", "blocks.1"),
    ],
)
def test_it_is_the_equation(
    classifiers: dict[str, Backbone], images: Tensor, name: str, layer: str
) -> None:
    backbone = classifiers[name]
    best = backbone.model_output(images).topk(2).indices.tolist()
    classes = [best[0][0], tuple(best[1]), best[2][0]]
    with torch.inference_mode():  # callers may be in it
        found = grad_cam(backbone, images.clone(), classes, layer)
    assert found.dtype == np.float32 and found.any(axis=(1, 2)).all()
    for image, entry, values in zip(images, classes, found, strict=True):
        wanted = [entry] if isinstance(entry, int) else list(entry)
        expected = plain_grad_cam(backbone, image, wanted, layer)
        low, high = expected.min(), expected.max()
        np.testing.assert_allclose(
            values, ((expected - low) / (1e-7 + high - low)).numpy(), atol=1e-4
        )


def test_the_last_block_gives_its_patch_tokens_no_gradient(
    classifiers: dict[str, Backbone], images: Tensor
) -> None:
    vit = classifiers["test_vit"]
    assert grad_cam_layer(vit) == "blocks.5.norm1"
    assert not grad_cam(vit, images, [0, 1, 2], "blocks.5").any()
    assert grad_cam(vit, images, [0, 1, 2]).any(axis=(1, 2)).all()
    assert grad_cam_layer(classifiers["test_resnet"]) == "layer4"


def test_it_leaves_the_backbone_as_it_was(classifiers: dict[str, Backbone], images: Tensor) -> None:
    backbone = classifiers["test_resnet"]
    before = backbone(images)["layer4"].map
    grad_cam(backbone, images, [0, 1, 2])
    assert not images.requires_grad
    after = backbone(images)["layer4"].map
    assert torch.equal(before, after) and not after.requires_grad
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert len(backbone.module.get_submodule("layer4")._forward_hooks) == 1


def test_a_relu_in_place_does_not_reach_what_is_kept(images: Tensor) -> None:
    config = BackboneConfig(name="torchvision:squeezenet1_0", weights="random", image_size=64)
    backbone = load_backbone(config)
    assert class_count(backbone) == 1000
    layer = "features.12.squeeze"  # a ReLU in place follows it
    with torch.no_grad():
        logits = backbone.model_output(images)
    assert logits.shape == (3, 1000)
    found = grad_cam(backbone, images[:1], [int(logits[0].argmax())], layer)
    kept: list[Tensor] = []
    module = backbone.module.get_submodule(layer)
    hook = module.register_forward_hook(lambda m, a, output: kept.append(output.clone()))
    whole = images[:1].clone().requires_grad_()
    gradients: list[Tensor] = []
    inner = module.register_forward_hook(
        lambda m, a, output: output.register_hook(gradients.append) and None
    )
    backbone.module(whole)[0].max().backward()
    hook.remove()
    inner.remove()
    cam = (gradients[0].mean(dim=(2, 3), keepdim=True) * kept[0]).sum(1).clamp(min=0)[0]
    assert (kept[0] < 0).any() and cam.max() > 0
    expected = (cam - cam.min()) / (cam.max() - cam.min() + 1e-7)
    np.testing.assert_allclose(found[0], expected.detach().numpy(), atol=1e-4)


def test_what_is_refused(classifiers: dict[str, Backbone], images: Tensor) -> None:
    backbone = classifiers["test_resnet"]
    with pytest.raises(DataError, match="class 1000 is not among the head's 1000"):
        grad_cam(backbone, images, [0, 1, 1000])
    with pytest.raises(DataError, match=r"class \(\) is not"):
        grad_cam(backbone, images, [0, 1, ()])
    with pytest.raises(DataError, match="3 pictures have 1 classes"):
        grad_cam(backbone, images, [0])
    with pytest.raises(LayerError, match="layer9"):
        grad_cam(backbone, images, [0, 1, 2], "layer9")
    headless = load_backbone(
        BackboneConfig(name="open_clip:RN50", weights="random", layers=("layer4",), image_size=64)
    )
    with pytest.raises(BackboneError, match="open_clip:RN50 has no classification head"):
        class_count(headless)


def test_random_maps_depend_on_seed_and_key_alone() -> None:
    first = random_map((4, 6), "a.jpg", 1)
    assert first.shape == (4, 6) and first.dtype == np.float32
    np.testing.assert_array_equal(first, random_map((4, 6), "a.jpg", 1))
    assert (first != random_map((4, 6), "b.jpg", 1)).any()
    assert (first != random_map((4, 6), "a.jpg", 2)).any()


def test_the_centre_map_is_a_gaussian() -> None:
    found = centre_map((5, 7), 0.2)
    assert found[2, 3] == 1.0
    np.testing.assert_allclose(found, found[::-1, ::-1])
    assert found[2, 4] == pytest.approx(np.exp(-((1 / 7 / 0.2) ** 2) / 2))
    assert found[3, 3] == pytest.approx(np.exp(-((1 / 5 / 0.2) ** 2) / 2))


def test_names_of_classes() -> None:
    assert len(imagenet_names()) == 1000
    assert [imagenet_names()[i] for i in (0, 1, 207)] == ["tench", "goldfish", "golden retriever"]


@pytest.mark.real
def test_real_classes_are_found_where_they_are(real_data: Path) -> None:
    weights = str(real_data / "models" / "vit_tiny_patch16_224.safetensors")
    backbone = load_backbone(BackboneConfig(name="timm:vit_tiny_patch16_224", weights=weights))
    assert class_count(backbone) == 1000 and grad_cam_layer(backbone) == "blocks.11.norm1"
    photo = open_image(real_data / "imagenet" / "n01443537_goldfish.jpg")
    batch = backbone.transform(photo)[None]
    assert imagenet_names()[int(backbone.model_output(batch).argmax())] == "goldfish"
    found = grad_cam(backbone, batch, [1])
    assert found.shape == (1, 14, 14) and found.max() > 0.99
