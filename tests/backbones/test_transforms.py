"""The evaluation transform is the library's own, on pictures that are not square."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from timm.data.transforms_factory import create_transform

from devil.backbones import load_backbone
from devil.backbones.timm_models import _transform as timm_transform
from devil.config import BackboneConfig
from devil.errors import BackboneError
from devil.images import EvaluationTransform


@pytest.mark.parametrize("name", ["squeezenet1_0", "shufflenet_v2_x0_5", "efficientnet_b0"])
def test_torchvision(name: str, picture: Image.Image) -> None:
    ours = load_backbone(BackboneConfig(name=f"torchvision:{name}", weights="random")).transform
    theirs = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    torch.testing.assert_close(ours(picture), theirs(picture), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("image_size", [None, 96])
def test_timm(mode: str, image_size: int | None, picture: Image.Image) -> None:
    model = timm.create_model("test_vit")
    model.pretrained_cfg["crop_mode"] = mode
    config = BackboneConfig(name="timm:test_vit", weights="random", image_size=image_size)
    settings = timm.data.resolve_model_data_config(model)
    if image_size is not None:
        settings["input_size"] = (3, image_size, image_size)
    expected = create_transform(**settings)(picture)
    ours = timm_transform(model, config)(picture)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("ViT-B-32/openai", "shortest"),
        ("ViT-B-32", "shortest"),
        ("PE-Core-T-16-384", "squash"),
        ("ViT-B-32", "longest"),
    ],
)
def test_open_clip(
    name: str, mode: str, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, _, tag = name.partition("/")
    tag = tag or open_clip.list_pretrained_tags_by_model(architecture)[0]
    published = {**open_clip.pretrained.get_pretrained_cfg(architecture, tag), "resize_mode": mode}
    # No architecture uses `longest`: alter one in the library's own table.
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED[architecture], tag, published)
    backbone = load_backbone(BackboneConfig(name=f"open_clip:{name}", weights="random"))
    preprocess = open_clip.transform.PreprocessCfg(
        size=backbone.module.image_size,
        mean=published["mean"],
        std=published["std"],
        interpolation=published["interpolation"],
        resize_mode=mode,
    )
    theirs = open_clip.transform.image_transform_v2(preprocess, is_train=False)
    torch.testing.assert_close(backbone.transform(picture), theirs(picture), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["dinov2", "clip", "convnext", "vit"])
def test_transformers(kind: str, picture: Image.Image, hub_folder: Callable[[str], Path]) -> None:
    folder = hub_folder(kind)
    config = BackboneConfig(name=f"transformers:{folder}", weights="random")
    ours = load_backbone(config).transform(picture)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    # They round pixels between the passes of the resize: one grey level of 255, over the deviation.
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 0.005
    assert (ours - theirs).abs().max() < 2.5 / 255 / 0.22


def test_transformers_processor_that_does_more(
    tmp_path: Path, hub_folder: Callable[[str], Path]
) -> None:
    transformers.AutoModel.from_pretrained(hub_folder("vit")).save_pretrained(tmp_path)
    config = BackboneConfig(name=f"transformers:{tmp_path}", weights="random")
    with pytest.raises(BackboneError, match=r"no preprocessor_config\.json"):
        load_backbone(config)
    # It swaps red and blue.
    processor = transformers.MobileViTImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}
    )
    processor.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"MobileViTImageProcessor.* not a resize"):
        load_backbone(config)


BASE = EvaluationTransform(
    resize=60, crop=(48, 48), interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3
)


@pytest.mark.parametrize(
    "transform",
    [
        BASE,
        replace(BASE, resize=(60, 52)),
        replace(BASE, resize=44, border=(0, 0, 0)),
        replace(BASE, resize=44),
    ],
    ids=["short side", "stretched", "bordered", "crop larger"],
)
@pytest.mark.parametrize("size", [(300, 200), (160, 240)])
def test_region_says_where_things_land(
    transform: EvaluationTransform, size: tuple[int, int]
) -> None:
    centre = (0.45 * size[0], 0.58 * size[1])
    picture = Image.new("RGB", size, "black")
    half = min(size) // 10
    box = [round(c) + sign * half for sign in (-1, 1) for c in centre]
    picture.paste((255, 255, 255), tuple(box))
    brightness = transform(picture).mean(0)
    rows, columns = torch.arange(48) + 0.5, torch.arange(48) + 0.5
    x = float((brightness.sum(0) * columns).sum() / brightness.sum())
    y = float((brightness.sum(1) * rows).sum() / brightness.sum())
    left, top, right, bottom = transform.region(size)
    assert left + x / 48 * (right - left) == pytest.approx((box[0] + box[2]) / 2, abs=0.5)
    assert top + y / 48 * (bottom - top) == pytest.approx((box[1] + box[3]) / 2, abs=0.5)


def test_region_of_a_bordered_picture_reaches_over_its_edge() -> None:
    left, top, right, bottom = replace(BASE, resize=48, border=(0, 0, 0)).region((96, 48))
    assert (left, top, right, bottom) == (0, -24, 96, 72)
