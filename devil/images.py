"""Bytes or files → RGB pictures, and the evaluation transform that backbones share.

Every library describes its evaluation transform by the same few numbers: resize, centre crop,
interpolation, mean and deviation. `EvaluationTransform` holds these numbers, so that a feature
store can write them down and an explanation can say which part of the picture the grid covers.
"""

import io
import warnings
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from devil.errors import ConfigError, ImageError

MAX_PIXELS = 100_000_000
"""Pictures with more pixels are refused before they are decoded (a decoded one takes 3 bytes each)."""
MIN_SIDE = 4
"""Pictures with a shorter side hold nothing to describe (tracking pixels, broken downloads)."""


def open_image(
    source: str | PathLike[str] | bytes | Image.Image, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode a picture to RGB, upright, transparency laid over white.

    Grey, palette, CMYK, 16-bit and transparent pictures are converted.

    Args:
        source: a path, the bytes of a file, or a picture already open.
        max_pixels: size limit, checked before decoding.

    Raises:
        ImageError: missing file, not a picture, truncated, or of a refused size.
    """
    label = "picture" if isinstance(source, bytes | Image.Image) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = source if isinstance(source, Image.Image) else Image.open(_stream(source))
        _check_size(image.size, label, max_pixels)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{label} does not exist; give the path of a picture.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{label} has more pixels than the limit of {max_pixels:,}: {error}"
        ) from error
    except Exception as error:  # Pillow's decoders raise many kinds
        raise ImageError(
            f"{label} cannot be decoded as a picture ({type(error).__name__}: {error}); "
            "give a whole JPEG, PNG, WebP or another format that Pillow reads."
        ) from error


def _stream(source: str | PathLike[str] | bytes) -> Any:
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source)


def _check_size(size: tuple[int, int], label: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{label} is {width} × {height} = {width * height:,} pixels; at most {max_pixels:,} "
            "are decoded. Make it smaller, or raise max_pixels."
        )
    if min(size) < MIN_SIDE:
        raise ImageError(f"{label} is {width} × {height} pixels; each side needs {MIN_SIDE}.")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion clips 16-bit greys to 255 instead of scaling them.
        return image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True, kw_only=True)
class EvaluationTransform:
    """Resize, centre crop, scale to [0, 1], normalise."""

    resize: int | tuple[int, int]
    """Length of the shorter side, or (height, width) without keeping the aspect."""
    crop: tuple[int, int]
    """Height and width of the centre crop, which is the backbone's input size."""
    interpolation: str
    """`bilinear`, `bicubic`, `nearest` or `lanczos`; antialiased."""
    mean: tuple[float, float, float]
    """Subtracted per channel, after scaling to [0, 1]."""
    std: tuple[float, float, float]
    """Divided by per channel."""

    def __post_init__(self) -> None:
        allowed = [mode.value for mode in InterpolationMode]
        if self.interpolation not in allowed:
            raise ConfigError(f"interpolation is {self.interpolation!r}; allowed: {allowed}.")

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """The tensor that the backbone takes, from an RGB picture."""
        mode = InterpolationMode(self.interpolation)
        size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
        resized = transforms.resize(image, size, mode, antialias=True)
        cropped = transforms.center_crop(resized, list(self.crop))
        tensor = transforms.to_tensor(cropped)
        return (tensor - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[
            :, None, None
        ]

    def region(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Which part of a picture of `size` (width, height) the backbone sees.

        Returns:
            left, top, right, bottom in pixels of the picture; the part can reach over its edge
            where the crop is larger than the resized picture.
        """
        width, height = size
        if isinstance(self.resize, int):
            short = min(width, height)
            resized = (self.resize * width / short, self.resize * height / short)
        else:
            resized = (float(self.resize[1]), float(self.resize[0]))
        crop_height, crop_width = self.crop
        left, top = (resized[0] - crop_width) / 2, (resized[1] - crop_height) / 2
        x, y = width / resized[0], height / resized[1]
        return left * x, top * y, (left + crop_width) * x, (top + crop_height) * y
