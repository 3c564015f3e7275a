"""One actor of crop coherence: describes units of pictures; numbers alone travel back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from PIL import Image

from devil.data.coco import CocoInstances
from devil.data.pictures import Failure, Picture, Unit, pictures
from devil.errors import DataError
from devil.evaluation.crops import CropRow, crop_rows
from devil.evaluation.field_coherence import FieldRow, field_rows
from devil.evaluation.image_text import ImageTextModel
from devil.evaluation.naming import Naming
from devil.evaluation.random_control import load_random_control
from devil.model import DeViL
from pipelines.pool import own_device

if TYPE_CHECKING:
    from pipelines.protocols.crops import CropsOptions

BATCH = 8
"""Pictures described at once."""


class CropsWorker:
    """One actor's models."""

    def __init__(self, options: CropsOptions) -> None:
        device = own_device()
        self.options = options
        self.model = DeViL.from_pretrained(options.model, device=device)
        self.untrained = load_random_control(options.random, self.model, device=device)
        self.judge = (
            ImageTextModel(options.image_text, device=device) if options.image_text.name else None
        )
        self.coco = (
            CocoInstances.open(options.instances, options.images) if options.instances else None
        )
        self.naming = Naming(self.coco.categories if self.coco else ())

    def __call__(self, unit: str) -> dict[str, Any]:
        """Describe one unit, given as JSON; its rows come back as safetensors."""
        asked = Unit.from_json(unit)
        readable: list[Picture] = []
        failed: list[str] = []
        parts: dict[str, list[np.ndarray]] = {}
        for item in islice(pictures(asked), self.options.limit or None):
            if isinstance(item, Failure):
                failed.append(item.key or item.source)
            elif self._fits(item):
                readable.append(item)
            else:
                failed.append(item.key)
        for start in range(0, len(readable), BATCH):
            for key, rows in self._rows(readable[start : start + BATCH]).items():
                parts.setdefault(key, []).append(rows)
        # safetensors writes an array's memory as it lies, whatever its strides say.
        tensors = {key: np.ascontiguousarray(np.concatenate(rows)) for key, rows in parts.items()}
        return {
            "unit": asked.name,
            "keys": json.dumps([picture.key for picture in readable]),
            "failed": json.dumps(failed),
            "tensors": safetensors.numpy.save(tensors),
        }

    def _fits(self, picture: Picture) -> bool:
        """Whether a picture's outlines can be drawn on it, where there are any."""
        if self.coco is None:
            return True
        photo = self.coco.photos[picture.key]
        try:
            photo.masks()
        except DataError:
            return False
        return picture.image.size == photo.size

    def _rows(self, batch: Sequence[Picture]) -> dict[str, np.ndarray]:
        images = [picture.image for picture in batch]
        result: dict[str, np.ndarray] = {}
        if self.judge is not None:
            crops = self._crops(self.model, images)
            result["crops"] = np.stack([row.crops for row in crops])
            result["texts"] = np.stack([row.texts for row in crops])
            if self.untrained is not None:
                crops = self._crops(self.untrained, images)
                result["texts.random"] = np.stack([row.texts for row in crops])
        if self.coco is not None:
            masks = [self.coco.photos[picture.key].masks() for picture in batch]
            for layer, found in self._fields(self.model, images, masks).items():
                result[f"named.{layer}"] = _packed(found)
                covered = np.stack([row.covered for row in found])
                result[f"covered.{layer}"] = covered.astype(np.int16)
            if self.untrained is not None:
                for layer, found in self._fields(self.untrained, images, masks).items():
                    result[f"random.{layer}"] = _packed(found)
        return result

    def _crops(self, model: DeViL, images: Sequence[Image.Image]) -> list[CropRow]:
        assert self.judge is not None
        return crop_rows(
            model,
            self.judge,
            images,
            layers=self.options.layers or None,
            sizes=self.options.sizes,
            decoding=self.options.decoding,
        )

    def _fields(
        self,
        model: DeViL,
        images: Sequence[Image.Image],
        masks: Sequence[Mapping[str, np.ndarray]],
    ) -> dict[str, list[FieldRow]]:
        return field_rows(
            model,
            images,
            masks,
            self.naming,
            layers=self.options.layers or None,
            fields=self.options.fields,
            locations=self.options.locations,
            decoding=self.options.decoding,
            seed=self.options.seed,
        )


def _packed(rows: Sequence[FieldRow]) -> np.ndarray:
    """What captions name, eight categories in a byte."""
    return np.packbits(np.stack([row.named for row in rows]), axis=-1)
