"""Real weights on real photos: a wrong transform or head would show in the accuracy."""

from pathlib import Path

import pytest
import torch
from timm.data import ImageNetInfo

from devil.backbones import load_backbone
from devil.config import BackboneConfig
from devil.images import open_image

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("name", "weights", "image_size", "least"),
    [
        ("timm:vit_tiny_patch16_224", "vit_tiny_patch16_224.safetensors", None, 0.70),
        ("torchvision:squeezenet1_0", "squeezenet1_0.safetensors", 227, 0.40),
    ],
)
def test_top_1(
    name: str, weights: str, image_size: int | None, least: float, real_data: Path
) -> None:
    path = str(real_data / "models" / weights)
    backbone = load_backbone(BackboneConfig(name=name, weights=path, image_size=image_size))
    classes = ImageNetInfo().label_names()
    photos = sorted((real_data / "imagenet").glob("*.jpg"))
    assert len(photos) == 200
    right = 0
    for start in range(0, len(photos), 25):
        batch = photos[start : start + 25]
        images = torch.stack([backbone.transform(open_image(photo)) for photo in batch])
        with torch.inference_mode():
            predicted = backbone.module(images).argmax(1).tolist()
        truth = [classes.index(photo.name.partition("_")[0]) for photo in batch]
        right += sum(p == t for p, t in zip(predicted, truth, strict=True))
    assert right / len(photos) >= least, right / len(photos)
