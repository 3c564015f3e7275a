"""Numbers to colours: interpolation against torch, placement on the picture, honest ranges."""

import numpy as np
import pytest
import torch
from PIL import Image

from devil.report.heatmap import (
    colour_table,
    colours,
    normalise,
    overlay,
    place,
    scale_of,
    upsample,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("grid", "size"),
    [
        ((7, 7), (224, 224)),
        ((3, 5), (31, 18)),
        ((1, 1), (4, 6)),
        ((1, 4), (9, 9)),
        ((6, 2), (7, 3)),
    ],
)
def test_upsampling_equals_torch(grid, size):
    values = RNG.normal(size=grid)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], size=size, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(upsample(values, *size), expected[0, 0].numpy(), atol=1e-12)


def test_a_map_over_whole_pixels_is_placed_like_an_upsampled_one():
    values = RNG.normal(size=(4, 6))
    placed = place(values, (10, 20, 58, 44), (100, 50))
    assert placed.box == (10, 20, 58, 44)
    np.testing.assert_allclose(placed.values, upsample(values, 24, 48), atol=1e-12)


def test_a_map_that_reaches_outside_the_picture_is_cut_not_squeezed():
    values = RNG.normal(size=(5, 5))
    placed = place(values, (-20, -10, 80, 90), (50, 60))
    assert placed.box == (0, 0, 50, 60)
    np.testing.assert_allclose(placed.values, upsample(values, 100, 100)[10:70, 20:70], atol=1e-12)


def test_a_fractional_region_covers_the_pixels_whose_centres_it_contains():
    assert place(np.zeros((2, 2)), (112.5, 12.5, 287.5, 187.5), (400, 200)).box == (
        112,
        12,
        287,
        187,
    )
    assert place(np.zeros((2, 2)), (0.6, 0.4, 3.4, 3.6), (9, 9)).box == (1, 0, 3, 4)


def test_the_peak_of_a_map_lands_on_the_pixels_of_its_cell():
    values = np.zeros((7, 5), np.float32)
    values[2, 3] = 1
    picture = Image.new("RGB", (400, 200), (90, 90, 90))
    drawn = np.asarray(overlay(picture, values, (112.5, 12.5, 287.5, 187.5), opacity=1.0))
    brightness = drawn.sum(axis=2).astype(float)
    rows, columns = np.nonzero(brightness >= brightness.max() - 12)
    assert 217.5 <= columns.min() and columns.max() <= 252.5  # the cell (2, 3) of the region
    assert 62.5 <= rows.min() and rows.max() <= 87.5
    assert columns.mean() == pytest.approx(234.5, abs=0.6)
    assert rows.mean() == pytest.approx(74.5, abs=0.6)


def test_outside_the_region_the_picture_is_untouched():
    pixels = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    drawn = np.asarray(overlay(Image.fromarray(pixels), RNG.normal(size=(3, 3)), (10, 5, 50, 35)))
    inside = np.zeros((40, 60), bool)
    inside[5:35, 10:50] = True
    assert (drawn[~inside] == pixels[~inside]).all()
    assert (drawn[inside] != pixels[inside]).any(axis=1).mean() > 0.99


def test_normalising_spans_the_own_range():
    values = np.array([[-9.0, -3.0], [-6.0, -4.5]], np.float32)
    np.testing.assert_allclose(normalise(values), [[0, 1], [0.5, 0.75]])
    assert scale_of(values).label == "−9.00 to −3.00"


@pytest.mark.parametrize("noise", [0.0, 4e-7])
def test_a_map_without_differences_is_flat_and_dark(noise):
    values = np.full((3, 3), -7.25, np.float32)
    values[1, 1] += noise
    assert scale_of(values).label == "flat at −7.25"
    assert not normalise(values).any()


def test_small_differences_are_differences():
    values = np.array([[-7.25, -7.249]], np.float32)
    assert normalise(values).tolist() == [[0, 1]]
    assert scale_of(values).label == "−7.2500 to −7.2490"


def test_lightness_rises_evenly_along_the_colours():
    rgb = colour_table() / 255.0
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    coarse = np.diff(lightness[::15])
    assert (coarse > 0).all()
    assert coarse.max() < 2.5 * coarse.min()


def test_colours_take_the_ends_of_the_table():
    table = colour_table()
    assert (colours(np.array([-1.0, 0.0, 1.0, 2.0])) == table[[0, 0, 255, 255]]).all()
