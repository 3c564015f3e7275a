"""The pointing game: geometry, chance, and what has no answer."""

import numpy as np
import pytest

from devil.errors import DataError
from devil.evaluation.pointing import blend_neighbours, pointing_score, points_at


def test_the_maximum_lands_in_the_pixels_of_its_cell() -> None:
    values = np.zeros((2, 4), np.float32)
    values[1, 2] = 1.0
    mask = np.zeros((40, 80), bool)
    mask[20:40, 40:60] = True
    assert points_at(values, (0, 0, 80, 40), mask)
    assert not points_at(values, (0, 0, 80, 40), ~mask)


def test_the_region_shifts_where_the_map_points() -> None:
    values = np.zeros((2, 2), np.float32)
    values[0, 0] = 1.0
    mask = np.zeros((60, 100), bool)
    mask[0:30, 20:50] = True
    assert points_at(values, (20, 0, 80, 60), mask)
    mask[:] = False
    mask[0:30, 0:20] = True
    assert not points_at(values, (20, 0, 80, 60), mask)


def test_several_highest_pixels_count_by_their_share() -> None:
    values = np.zeros((2, 2), np.float32)
    values[0, 1] = 1.0  # its plateau at the edge: columns 60 to 79, rows 0 to 9
    mask = np.zeros((40, 80), bool)
    mask[:, 70:] = True
    assert points_at(values, (0, 0, 80, 40), mask) == pytest.approx(0.5)
    assert points_at(values[:, ::-1], (0, 0, 80, 40), mask[:, ::-1]) == pytest.approx(0.5)
    flat = np.full((3, 3), 0.1, np.float32)
    assert points_at(flat, (0, 0, 80, 40), mask) == pytest.approx(mask.mean())


def test_chance_is_the_objects_mean_share() -> None:
    score = pointing_score([(True, 0.1), (False, 0.3)])
    assert score.hits == 0.5 and score.chance == pytest.approx(0.2) and score.maps == 2


def test_no_maps_are_an_error() -> None:
    with pytest.raises(DataError, match="no maps"):
        pointing_score([])


def test_a_cluster_beats_a_lone_location_once_neighbours_are_blended() -> None:
    values = np.zeros((5, 6), np.float32)
    values[0, 0] = 1.0
    values[2:5, 3:6] = 0.9
    assert blend_neighbours(values, 0.0).tolist() == values.tolist()
    blended = blend_neighbours(values, 0.25)
    assert blended.shape == values.shape
    assert np.unravel_index(blended.argmax(), blended.shape) == (3, 4)
    constant = np.full((2, 3), 7.0)
    np.testing.assert_allclose(blend_neighbours(constant, 0.25), constant)
