"""RGB pictures → what backbones take: the evaluation transform that they share.

Every library describes its evaluation transform by the same few numbers: resize, centre crop,
interpolation, mean and deviation. `EvaluationTransform` holds these numbers, so that a feature
store can write them down and an explanation can say which part of the picture the grid covers.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from devil.errors import ConfigError
from devil.picture import MAX_PIXELS, open_image

__all__ = ["MAX_PIXELS", "RESAMPLING", "EvaluationTransform", "open_image"]

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
"""Interpolations by the names that the libraries use; all but the first antialias."""


@dataclass(frozen=True, kw_only=True)
class EvaluationTransform:
    """Resize, centre crop, scale to [0, 1], normalise."""

    resize: int | tuple[int, int]
    """Length of the shorter side, or (height, width) without keeping the aspect."""
    crop: tuple[int, int]
    """Height and width of the centre crop, which is the backbone's input size."""
    interpolation: str
    """A name in `RESAMPLING`."""
    mean: tuple[float, float, float]
    """Subtracted per channel, after scaling to [0, 1]."""
    std: tuple[float, float, float]
    """Divided by per channel."""
    border: tuple[int, int, int] | None = None
    """Colour (0 to 255) around the picture: then `resize` is the *longer* side's length."""
    round_down: bool = False
    """The crop begins at the pixel below (transformers), not at the nearest (torchvision)."""

    def __post_init__(self) -> None:
        if self.interpolation not in RESAMPLING:
            raise ConfigError(
                f"interpolation is {self.interpolation!r}; allowed: {sorted(RESAMPLING)}."
            )

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """The tensor that the backbone takes, from an RGB picture."""
        height, width = self._resized(image.size)
        resized = image.resize((width, height), RESAMPLING[self.interpolation])
        left, top = self._offset(resized.size)
        canvas = Image.new("RGB", (self.crop[1], self.crop[0]), self.border or (0, 0, 0))
        canvas.paste(resized, (-left, -top))
        pixels = torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / 255
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (pixels - mean[:, None, None]) / std[:, None, None]

    def masks(
        self, masks: Float[Tensor, "batch height width"]
    ) -> Float[Tensor, "batch rows columns"]:
        """Bring masks of pictures to what the backbone sees: resized bilinearly, cropped.

        What the crop shows beyond a picture's edge is 0.
        """
        _, height, width = masks.shape
        rows, columns = self._resized((width, height))
        resized = masks[:, None]
        if (rows, columns) != (height, width):
            resized = F.interpolate(resized, size=(rows, columns), mode="bilinear")
        left, top = self._offset((columns, rows))
        edges = (-left, left + self.crop[1] - columns, -top, top + self.crop[0] - rows)
        return F.pad(resized, edges)[:, 0]

    def resized(self, side: int) -> "EvaluationTransform":
        """The same transform for square input of another size."""
        height, width = self.crop
        if isinstance(self.resize, int):
            resize: int | tuple[int, int] = round(self.resize * side / height)
        else:
            resize = (
                round(self.resize[0] * side / height),
                round(self.resize[1] * side / width),
            )
        return replace(self, resize=resize, crop=(side, side))

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a picture of `size` (width, height) before the crop."""
        width, height = size
        if not isinstance(self.resize, int):
            return self.resize
        if self.border is not None:
            factor = self.resize / max(size)
            return max(1, round(height * factor)), max(1, round(width * factor))
        # Truncated as torchvision does.
        if width <= height:
            return int(self.resize * height / width), self.resize
        return self.resize, int(self.resize * width / height)

    def _offset(self, size: tuple[int, int]) -> tuple[int, int]:
        """Where in a resized picture of `size` (width, height) the crop begins: left, top.

        Negative where the crop is larger than the picture.
        """
        left, top = (
            -((crop - length) // 2)
            if length < crop
            else (length - crop) // 2
            if self.round_down
            else round((length - crop) / 2)
            for length, crop in zip(size, reversed(self.crop), strict=True)
        )
        return left, top

    def region(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Which part of a picture of `size` (width, height) the backbone sees.

        Returns:
            left, top, right, bottom in pixels of the picture; the part can reach over its edge
            where the crop is larger than the resized picture.
        """
        resized_height, resized_width = self._resized(size)
        left, top = self._offset((resized_width, resized_height))
        right, bottom = left + self.crop[1], top + self.crop[0]
        x, y = size[0] / resized_width, size[1] / resized_height
        return left * x, top * y, right * x, bottom * y
