"""Pictures of every kind to RGB, and clear refusals of what is none."""

import io
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import text_bomb

from devil.errors import ConfigError, ImageError
from devil.images import EvaluationTransform, open_image
from devil.picture import FORMATS

SIZE = (12, 8)
ORANGE = (255, 128, 0)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def paletted(transparency: int | None) -> bytes:
    image = Image.new("P", SIZE, 1)
    image.putpalette([0, 0, 0, *ORANGE])
    options = {} if transparency is None else {"transparency": transparency}
    return encoded(image, **options)


def grey_16(value: int) -> bytes:
    return encoded(Image.fromarray(np.full(SIZE[::-1], value, dtype=np.uint16)))


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encoded(Image.new("RGB", SIZE, ORANGE)), ORANGE),
        (encoded(Image.new("L", SIZE, 77)), (77, 77, 77)),
        (encoded(Image.new("1", SIZE, 1)), (255, 255, 255)),
        (encoded(Image.new("LA", SIZE, (0, 51))), (204, 204, 204)),
        (encoded(Image.new("RGBA", SIZE, (*ORANGE, 0))), (255, 255, 255)),
        (encoded(Image.new("RGBA", SIZE, (255, 0, 0, 51))), (255, 204, 204)),
        (paletted(None), ORANGE),
        (paletted(1), (255, 255, 255)),
        (paletted(0), ORANGE),
        (encoded(Image.new("RGB", SIZE, ORANGE), transparency=ORANGE), (255, 255, 255)),
        (grey_16(65535), (255, 255, 255)),
        (grey_16(200 * 257), (200, 200, 200)),
        (grey_16(255), (1, 1, 1)),
    ],
    ids=[
        "rgb",
        "grey",
        "bits",
        "grey and alpha",
        "transparent",
        "translucent",
        "palette",
        "palette, transparent",
        "palette, other transparent",
        "rgb, transparent colour",
        "16 bits, white",
        "16 bits, grey",
        "16 bits, nearly black",
    ],
)
def test_modes(data: bytes, colour: tuple[int, int, int]) -> None:
    image = open_image(data)
    assert (image.mode, image.size) == ("RGB", SIZE)
    assert set(image.get_flattened_data()) == {colour}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_formats_that_are_decoded(kind: str) -> None:
    size = (16, 16)
    found = open_image(encoded(Image.new("RGB", size, ORANGE), kind))
    pixel = found.getpixel((8, 8))
    assert found.size == size and isinstance(pixel, tuple) and abs(pixel[1] - ORANGE[1]) < 8


@pytest.mark.parametrize("kind", ["EPS", "TGA", "PCX", "SGI", "DDS", "ICO"])
def test_old_formats_are_not_decoded(kind: str) -> None:
    with pytest.raises(ImageError, match="give a JPEG, PNG, WEBP"):
        open_image(encoded(Image.new("RGB", SIZE, ORANGE), kind))


def test_cmyk_jpeg() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    red, green, blue = open_image(data).getpixel((8, 8))
    assert red > 240 and green < 15 and blue < 15


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_turned_upright() -> None:
    image = Image.new("RGB", (16, 8), "white")
    image.paste("black", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    upright = open_image(encoded(image, "PNG", exif=exif))
    assert upright.size == (8, 16)
    assert upright.getpixel((6, 1)) == (0, 0, 0)
    assert upright.getpixel((1, 1)) == (255, 255, 255)


def test_from_path_and_from_an_open_picture(tmp_path: Path) -> None:
    image = Image.new("RGBA", SIZE, (*ORANGE, 0))
    image.save(tmp_path / "a.png")
    expected = Image.new("RGB", SIZE, "white").tobytes()
    assert open_image(tmp_path / "a.png").tobytes() == expected
    assert open_image(str(tmp_path / "a.png")).tobytes() == expected
    assert open_image(image).tobytes() == expected
    assert image.mode == "RGBA"


def photo(size: tuple[int, int] = (200, 150)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise), "JPEG")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"<html>not found</html>", "picture is not a picture; give a JPEG"),
        (photo()[:3000], "cannot be decoded .*truncated"),
        (photo()[:100], "(not a picture|cannot be)"),
        (encoded(Image.new("RGB", (1, 1))), "too small, 1 × 1 pixels.*at least 4"),
        (encoded(Image.new("RGB", (500, 3))), "too small, 500 × 3"),
        (encoded(Image.new("L", (2000, 10))), "too long, 2000 × 10 pixels; at most 100 : 1"),
        (encoded(Image.new("F", SIZE, 0.5), "TIFF"), "32-bit float"),
    ],
    ids=["empty", "text", "truncated", "header", "1 × 1", "flat", "long", "float"],
)
def test_refusals(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        open_image(data)
    assert "object at 0x" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is ImageError and str(again) == str(caught.value)


def test_paths_that_are_no_pictures(tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    with pytest.raises(ImageError, match=r"text\.jpg is not a picture"):
        open_image(text)
    with pytest.raises(ImageError, match=r"none\.jpg does not exist"):
        open_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match=f"{tmp_path.name} cannot be read .*directory"):
        open_image(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("kind", "side"), [("PNG", 20_000), ("JPEG", 20_000), ("PNG", 11_000)])
def test_huge_pictures_are_refused_before_decoding(kind: str, side: int) -> None:
    if kind == "PNG":
        data = encoded(Image.new("1", (side, side)))
    else:  # the size stands in the frame header, behind FF C0, a length and a precision
        data = photo((8, 8))
        at = data.index(b"\xff\xc0") + 5
        data = data[:at] + side.to_bytes(2, "big") * 2 + data[at + 4 :]
    tracemalloc.start()
    with pytest.raises(ImageError, match=r"too large.*at most 100,000,000 .*smaller"):
        open_image(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000  # nothing was decoded


def test_max_pixels_is_the_callers() -> None:
    data = photo()
    assert open_image(data, max_pixels=30_000).size == (200, 150)
    with pytest.raises(ImageError, match=r"200 × 150 = 30,000 pixels; at most 29,999"):
        open_image(data, max_pixels=29_999)
    with pytest.raises(ImageError, match="at most 29,999"):
        open_image(Image.new("RGB", (200, 150)), max_pixels=29_999)


def test_unknown_interpolation() -> None:
    with pytest.raises(ConfigError, match=r"'cubic'; allowed: .*'bicubic'"):
        EvaluationTransform(
            resize=8, crop=(8, 8), interpolation="cubic", mean=(0.5,) * 3, std=(0.5,) * 3
        )


def test_resized_keeps_the_proportions() -> None:
    transform = EvaluationTransform(
        resize=256, crop=(224, 224), interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3
    )
    assert (transform.resized(112).resize, transform.resized(112).crop) == (128, (112, 112))


def test_whatever_pillow_raises_is_told_as_damage() -> None:
    with pytest.raises(ImageError, match=r"cannot be decoded \(ValueError: .*too large"):
        open_image(text_bomb())


def test_a_long_picture_keeps_a_pixel_of_its_short_side() -> None:
    transform = EvaluationTransform(
        resize=16,
        crop=(16, 16),
        interpolation="bilinear",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        border=(0, 0, 0),
    )
    for size in ((1000, 10), (10, 1000)):
        assert transform(Image.new("RGB", size, "white")).sum() == 3 * 16
