"""Scenes as the backbone sees them: pictures, who owns each location, and the words to tell."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torch.nn import functional as F

from devil.data.scenes import SIZES, TEXTURES, Scene, SceneConfig
from devil.errors import DataError

_MOST_OBJECTS = 4


@dataclass(frozen=True)
class Labels:
    """What the backbone tells apart: one group of words per attribute of an object."""

    kinds: tuple[str, ...]
    colours: tuple[str, ...]
    textures: tuple[str, ...] = TEXTURES
    sizes: tuple[str, ...] = tuple(SIZES)
    backgrounds: tuple[str, ...] = SceneConfig.backgrounds

    @classmethod
    def of(cls, config: SceneConfig | None = None) -> "Labels":
        """Labels of the scenes that `config` allows."""
        config = config or SceneConfig()
        return cls(kinds=config.kinds, colours=config.colours, backgrounds=config.backgrounds)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in the order of the backbone's logits: "red circle", ..., then "red", ..."""
        pairs = tuple(f"{colour} {kind}" for kind in self.kinds for colour in self.colours)
        return (*pairs, *self.kinds, *self.colours, *self.textures, *self.backgrounds)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Attributes of an object that are told at each of its locations."""
        return self.kinds, self.colours, self.textures, self.sizes


@dataclass(frozen=True)
class Views:
    """Scenes as the backbone sees them."""

    images: Tensor
    """uint8 (scene, 3, height, width) after resizing and cropping, before normalisation."""
    shares: Tensor
    """float16 (scene, object, row, column): share of a `layer3` location that an object fills."""
    attributes: Tensor
    """int64 (scene, object, group): index of the object's word in each group, -1 for none."""
    backgrounds: Tensor
    """int64 (scene): index of the background."""

    def __getitem__(self, index: slice | Tensor) -> "Views":
        return Views(
            self.images[index], self.shares[index], self.attributes[index], self.backgrounds[index]
        )

    def __len__(self) -> int:
        return len(self.images)


def view_scenes(scenes: Iterable[Scene], model: nn.Module, labels: Labels) -> Views:
    """Passes pictures and masks through the model's evaluation transform."""
    data = resolve_model_data_config(model)
    plain = {**data, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    transform: Any = create_transform(**plain, is_training=False)
    to_owners: Any = create_transform(
        **{**plain, "interpolation": "nearest", "mean": (0.0,), "std": (1.0,)}, is_training=False
    )
    locations = data["input_size"][1] // _reduction(model, "layer3")
    images, shares, attributes, backgrounds = [], [], [], []
    for scene in scenes:
        images.append((transform(scene.image) * 255).round().to(torch.uint8))
        owners = np.zeros((scene.image.height, scene.image.width), dtype=np.uint8)
        for number, item in enumerate(scene.objects, start=1):
            owners[item.mask] = number
        seen = (to_owners(Image.fromarray(owners))[0] * 255).round()
        owned = torch.stack([seen == number for number in range(1, _MOST_OBJECTS + 1)])
        shares.append(F.adaptive_avg_pool2d(owned.float(), locations).half())
        attributes.append(_attributes(scene, labels))
        backgrounds.append(_index(scene.background, labels.backgrounds))
    if not images:
        raise DataError("there are no scenes to train on; pass at least one")
    return Views(
        torch.stack(images), torch.stack(shares), torch.stack(attributes), torch.tensor(backgrounds)
    )


def _reduction(model: Any, layer: str) -> int:
    return next(info["reduction"] for info in model.feature_info if info["module"] == layer)


def _attributes(scene: Scene, labels: Labels) -> Tensor:
    found = torch.full((_MOST_OBJECTS, len(labels.groups)), -1)
    for row, item in enumerate(scene.objects):
        words = (item.kind, item.colour, item.texture, item.size)
        for column, (word, group) in enumerate(zip(words, labels.groups, strict=True)):
            found[row, column] = _index(word, group)
    return found


def _index(word: str, group: tuple[str, ...]) -> int:
    if word not in group:
        raise DataError(f"a scene has {word!r}, which no label names; labels are {group}")
    return group.index(word)


def image_targets(views: Views, labels: Labels) -> Tensor:
    """Multi-hot (scene, label): which of `labels.names` are in the picture."""
    attributes = views.attributes
    targets = torch.zeros(len(attributes), len(labels.names))
    scene, slot = (attributes[..., 0] >= 0).nonzero(as_tuple=True)
    kind, colour, texture, _ = attributes[scene, slot].unbind(1)
    kinds, colours = len(labels.kinds), len(labels.colours)
    first = kinds * colours
    targets[scene, kind * colours + colour] = 1
    targets[scene, first + kind] = 1
    targets[scene, first + kinds + colour] = 1
    targets[scene, first + kinds + colours + texture] = 1
    last = first + kinds + colours + len(labels.textures)
    targets[torch.arange(len(views)), last + views.backgrounds] = 1
    return targets
