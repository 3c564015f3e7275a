"""Maps of photos with instance masks, scored: DeViL's, Grad-CAM's, and maps that know nothing.

What the scores are is told in `localisation`.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from devil.data.coco import CocoPhoto
from devil.errors import BackboneError, DataError
from devil.evaluation.class_maps import (
    centre_map,
    class_count,
    grad_cam,
    grad_cam_layer,
    imagenet_names,
    random_map,
)
from devil.evaluation.coco_classes import coco_imagenet_classes
from devil.evaluation.localisation import MapResult, Region, map_score, seen_part
from devil.evaluation.map_setting import MapSetting
from devil.evaluation.naming import SYNONYMS
from devil.evaluation.query_maps import PictureMaps, query_maps
from devil.evaluation.random_control import RANDOM_BACKBONE
from devil.evaluation.stored import derangement
from devil.model import DeViL
from devil.picture_features import image_features

SHUFFLED = " / shuffled"
"""Ends the name of a setting that was given the features of another photo."""
UNTRAINED = f" / {RANDOM_BACKBONE}"
"""Ends the name of a setting of the model for a random backbone."""
RANDOM, CENTRE = "random map", "centre map"
GRAD_CAM = "Grad-CAM "
"""Begins the name of a Grad-CAM, followed by its layer."""


class Localiser:
    """Scores DeViL's maps, Grad-CAM and blind maps on photos.

    Attributes:
        methods: what is measured, in the order of tables.
        grad_cam_layers: modules of the backbone; empty where it has no ImageNet-1k head.
    """

    def __init__(
        self,
        model: DeViL,
        settings: Sequence[MapSetting],
        categories: Sequence[str],
        *,
        grad_cam_layers: Sequence[str] | None = None,
        untrained: DeViL | None = None,
        seed: int = 0,
    ) -> None:
        """Check what is asked.

        Args:
            model: With its backbone.
            settings: How DeViL's maps are made.
            categories: All names, for settings with contrast.
            grad_cam_layers: Modules; None: `grad_cam_layer`; empty: no Grad-CAM.
            untrained: The control out of `load_random_control`, whose maps stand beside these.
            seed: Of the random maps, and of which photo's features are the control.

        Raises:
            BackboneError: Grad-CAM was asked for by layers, and the backbone has no such head.
            LayerError: a layer does not exist, or the model was not trained for it.
        """
        self.model, self.untrained, self.seed = model, untrained, seed
        self.settings, self.categories = tuple(dict.fromkeys(settings)), tuple(categories)
        for setting in self.settings:
            model.chosen_layers(setting.layers)
        self.grad_cam_layers = _grad_cam_layers(model, grad_cam_layers)
        self.methods = (
            *(setting.name for setting in self.settings),
            *(setting.name + SHUFFLED for setting in self.settings),
            *(setting.name + UNTRAINED for setting in self.settings if untrained is not None),
            *(GRAD_CAM + layer for layer in self.grad_cam_layers),
            RANDOM,
            CENTRE,
        )

    def __call__(self, photos: Sequence[CocoPhoto]) -> list[MapResult]:
        """Score all maps of some photos; each is the control of another of them.

        Objects outside the part that the backbone sees are left out.

        Raises:
            DataError: there is one photo, so that no other can be its control.
        """
        assert self.model.backbone is not None
        if len(photos) < 2:
            raise DataError("the control takes the features of another photo; give two or more.")
        transform = self.model.backbone.transform
        targets = []
        for photo in photos:
            region = transform.region(photo.size)
            masks = {n: m for n, m in photo.masks().items() if seen_part(region, m).any()}
            targets.append(_Target(photo.key, region, masks))
        images = [photo.image() for photo in photos]
        return [
            *self._devil(images, targets),
            *self._untrained(images, targets),
            *self._grad_cam(images, targets),
            *self._blind(targets),
        ]

    def _devil(
        self, images: Sequence[Image.Image], targets: Sequence["_Target"]
    ) -> list[MapResult]:
        other = derangement(len(images), self.seed).tolist()
        asked = [list(target.masks) for target in targets]
        for photo, control in enumerate(other):
            asked[control] += [n for n in targets[photo].masks if n not in asked[control]]
        maps = self._maps(self.model, images, asked)
        found = []
        for setting, pictures in maps.items():
            for photo, target in enumerate(targets):
                for name in target.masks:
                    found.append(target.result(name, setting.name, pictures[photo][name]))
                    shuffled = pictures[other[photo]][name]
                    found.append(target.result(name, setting.name + SHUFFLED, shuffled))
        return found

    def _untrained(
        self, images: Sequence[Image.Image], targets: Sequence["_Target"]
    ) -> list[MapResult]:
        if self.untrained is None:
            return []
        maps = self._maps(self.untrained, images, [list(target.masks) for target in targets])
        return [
            target.result(name, setting.name + UNTRAINED, values)
            for setting, pictures in maps.items()
            for target, found in zip(targets, pictures, strict=True)
            for name, values in found.items()
        ]

    def _maps(
        self, model: DeViL, images: Sequence[Image.Image], asked: Sequence[Sequence[str]]
    ) -> dict[MapSetting, list[PictureMaps]]:
        return query_maps(
            model,
            image_features(model, images),
            asked,
            self.settings,
            names=[self.categories] * len(images),
            synonyms=SYNONYMS,
        )

    def _grad_cam(
        self, images: Sequence[Image.Image], targets: Sequence["_Target"]
    ) -> list[MapResult]:
        backbone, classes = self.model.backbone, coco_imagenet_classes()
        assert backbone is not None
        pairs = [(i, name) for i, t in enumerate(targets) for name in t.masks if name in classes]
        found = []
        if pairs and self.grad_cam_layers:
            batch = torch.stack([backbone.transform(images[photo]) for photo, _ in pairs])
            for layer in self.grad_cam_layers:
                maps = grad_cam(backbone, batch, [classes[name] for _, name in pairs], layer)
                for (photo, name), values in zip(pairs, maps, strict=True):
                    found.append(targets[photo].result(name, GRAD_CAM + layer, values))
        return found

    def _blind(self, targets: Sequence["_Target"]) -> list[MapResult]:
        shape = self.model.shapes[self.model.layers[-1]]
        grid = (shape.height, shape.width)
        centre = centre_map(grid)
        found = []
        for target in targets:
            for name in target.masks:
                noise = random_map(grid, f"{target.key}|{name}", self.seed)
                found.append(target.result(name, RANDOM, noise))
                found.append(target.result(name, CENTRE, centre))
        return found


class _Target(NamedTuple):
    """What maps of one photo are compared with."""

    key: str
    region: Region
    masks: dict[str, np.ndarray]

    def result(self, category: str, method: str, values: np.ndarray) -> MapResult:
        score = map_score(values, self.region, self.masks[category])
        return MapResult(self.key, category, method, score)


def _grad_cam_layers(model: DeViL, wanted: Sequence[str] | None) -> tuple[str, ...]:
    backbone = model.backbone
    if backbone is None:
        raise BackboneError(
            "this model was loaded without its backbone; load it with load_backbone=True."
        )
    if wanted is not None and not wanted:
        return ()
    classes = len(imagenet_names())
    try:
        count = class_count(backbone)
    except BackboneError:
        if wanted:
            raise
        return ()
    if count != classes:
        if wanted:
            raise BackboneError(
                f"{backbone.name} tells {count} classes apart; Grad-CAM for COCO's categories "
                f"needs the {classes} of ImageNet-1k."
            )
        return ()
    layers = tuple(wanted or [grad_cam_layer(backbone)])
    for layer in layers:
        backbone.layout(layer)
    return layers


def with_class(results: Iterable[MapResult]) -> list[MapResult]:
    """Results for categories that ImageNet-1k has classes for, where Grad-CAM can be compared."""
    classes = coco_imagenet_classes()
    return [result for result in results if result.category in classes]
