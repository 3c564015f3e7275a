"""A file, its bytes or an open picture → one upright RGB picture.

Needs Pillow and no torch, so that a client can check and show what it sends. What backbones make of
a picture is in `devil.images`.
"""

import io
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from devil.errors import ImageError

MAX_PIXELS = 100_000_000
"""Pictures with more pixels are refused before they are decoded (each pixel takes 3 bytes then)."""
MIN_SIDE = 4
"""Pictures with a shorter side hold nothing to describe (tracking pixels, broken downloads)."""
MAX_ASPECT = 100
"""Longer pictures are refused: resized by their short side, they would fill the memory."""

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TIFF")
"""What is decoded. Pillow knows some forty more, old and seldom tried; one starts a program, and
icons (ICO) are decoded before their size is known."""


def open_image(
    source: str | PathLike[str] | bytes | Image.Image, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode a picture to RGB, upright, transparency laid over white.

    Grey, palette, CMYK, 16-bit and transparent pictures are converted; of an animation, the
    first frame is taken.

    Args:
        source: a path, the bytes of a file, or a picture already open.
        max_pixels: size limit, checked before decoding.

    Raises:
        ImageError: missing file, not a picture, truncated, or of a refused size.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "picture", max_pixels)
    label = "picture" if isinstance(source, bytes) else str(source)
    if source == b"":
        raise ImageError(f"{label} is empty (0 bytes); give the bytes of a whole file.")
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
        with Image.open(stream, formats=FORMATS) as image:
            return _decode(image, label, max_pixels)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{label} does not exist; give the path of a picture.") from error
    except Image.DecompressionBombError as error:
        limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise ImageError(
            f"{label} is too large ({error}); at most {limit:,} pixels are decoded. Make it "
            "smaller."
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{label} is not a picture; give a {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
        ) from error
    except OSError as error:
        raise ImageError(f"{label} cannot be read ({error}); give the path of a file.") from error
    except Exception as error:  # such as a PNG whose texts would fill the memory
        raise _damaged(label, error) from error


def _decode(image: Image.Image, label: str, max_pixels: int) -> Image.Image:
    _check_size(image.size, label, max_pixels)
    try:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), label)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds
        raise _damaged(label, error) from error


def _damaged(label: str, error: Exception) -> ImageError:
    return ImageError(
        f"{label} cannot be decoded ({type(error).__name__}: {error}); the file is truncated or "
        "damaged."
    )


def _check_size(size: tuple[int, int], label: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{label} is too large, {width} × {height} = {width * height:,} pixels; at most "
            f"{max_pixels:,} are decoded. Make it smaller, or raise max_pixels."
        )
    if min(size) < MIN_SIDE:
        raise ImageError(
            f"{label} is too small, {width} × {height} pixels; each side needs at least {MIN_SIDE}."
        )
    if max(size) > MAX_ASPECT * min(size):
        raise ImageError(
            f"{label} is too long, {width} × {height} pixels; at most {MAX_ASPECT} : 1 is "
            "accepted. Cut it into pieces."
        )


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit greys to 255 instead of scaling them.
        values = np.asarray(image, dtype=np.float64) / 257
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError(
            f"{label} has 32-bit float pixels, whose range of grey is unknown; save it with 8 or "
            "16 bits per channel."
        )
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
