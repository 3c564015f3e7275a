"""Tiny models of transformers in hub layout, and pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 8,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 8,
}
STAGES = {"depths": [2, 2, 2, 2], "image_size": 64}
CONFIGS = {
    "dinov2": (transformers.Dinov2Config, SMALL),
    "registers": (transformers.Dinov2WithRegistersConfig, SMALL),
    "vit": (transformers.ViTConfig, SMALL),
    "clip": (
        transformers.CLIPConfig,
        {
            "vision_config": SMALL,
            "text_config": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1},
        },
    ),
    "siglip": (transformers.SiglipVisionConfig, SMALL),
    "swin": (
        transformers.SwinConfig,
        {**STAGES, "embed_dim": 16, "num_heads": [2, 2, 4, 4], "window_size": 2},
    ),
    "convnext": (transformers.ConvNextConfig, {**STAGES, "hidden_sizes": [8, 12, 20, 24]}),
}
SQUARE = {"height": 64, "width": 64}
PROCESSORS = {
    "dinov2": transformers.BitImageProcessor(size={"shortest_edge": 80}, crop_size=SQUARE),
    "clip": transformers.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=SQUARE),
    "convnext": transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875),
}
PROCESSORS["registers"] = PROCESSORS["dinov2"]
OTHER_PROCESSOR = transformers.ViTImageProcessor(size=SQUARE)


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind → folder of a tiny model with its image processor, as on the hub."""
    root = tmp_path_factory.mktemp("hub")

    def folder(kind: str) -> Path:
        path = root / kind
        if not path.exists():
            config, settings = CONFIGS[kind]
            with torch.random.fork_rng():
                torch.manual_seed(1)
                model = transformers.AutoModel.from_config(config(**settings))
            model.save_pretrained(path)
            PROCESSORS.get(kind, OTHER_PROCESSOR).save_pretrained(path)
        return path

    return folder


@pytest.fixture(params=[(300, 200), (97, 181), (64, 50)], ids=str)
def picture(request: pytest.FixtureRequest) -> Image.Image:
    """Soft gradients with some grain, in sizes that are not square."""
    width, height = request.param
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    channels = np.stack([200 * x, 200 * y, 200 * x * y], axis=2)
    grain = np.random.default_rng(0).integers(0, 50, channels.shape)
    return Image.fromarray((channels + grain).astype(np.uint8))
