"""Scores of maps against masks, and their sums."""

import numpy as np
import pytest

from devil.errors import DataError
from devil.evaluation.localisation import (
    AREAS,
    FIXED_AREA,
    MapResult,
    MapScore,
    localisation_gains,
    localisation_scores,
    map_score,
    overlaps,
    seen_part,
)

CELLS = (4, 5)


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros((40, 50), bool)
    mask[10:20, 10:30] = True
    return mask


def plain_precision(truth: np.ndarray, pixels: np.ndarray) -> float:
    """Σ over thresholds of precision · gain in recall."""
    total, before = 0.0, 0.0
    for threshold in np.unique(pixels)[::-1]:
        chosen = pixels >= threshold
        recall = (chosen & truth).sum() / truth.sum()
        total += (recall - before) * (chosen & truth).sum() / chosen.sum()
        before = recall
    return total


def test_scores_against_their_definitions(mask: np.ndarray) -> None:
    values = np.random.default_rng(0).normal(size=CELLS)
    region = (-5.0, 0.0, 45.0, 40.0)  # reaches over the left edge, lacks the right one
    found = map_score(values, region, mask)
    # Plain bilinear reading: cells are 10 × 10 pixels, centres at 5, 15, ...
    pixels = np.empty((40, 45))
    for y in range(40):
        for x in range(45):
            row = np.clip((y + 0.5) / 10 - 0.5, 0, 3)
            column = np.clip((x + 0.5 + 5) / 10 - 0.5, 0, 4)
            top, left = min(int(row), 2), min(int(column), 3)
            a, b = row - top, column - left
            square = values[top : top + 2, left : left + 2]
            pixels[y, x] = np.array([1 - a, a]) @ square @ np.array([1 - b, b])
    truth = mask[:, :45]
    assert found.share == pytest.approx(truth.mean())
    assert found.hit == truth.ravel()[pixels.argmax()]
    assert found.precision == pytest.approx(plain_precision(truth.ravel(), pixels.ravel()))
    for area, overlap in zip(AREAS, found.overlaps, strict=True):
        chosen = pixels >= np.sort(pixels.ravel())[-round(area * pixels.size)]
        expected = (chosen & truth).sum() / (chosen | truth).sum()
        assert overlap == pytest.approx(expected, abs=1e-9)


def test_a_perfect_and_a_flat_map(mask: np.ndarray) -> None:
    region = (0.0, 0.0, 50.0, 40.0)
    perfect = map_score(mask.astype(float), region, mask)
    assert perfect.hit and perfect.precision == pytest.approx(1) and max(perfect.overlaps) == 1
    flat = map_score(np.zeros(CELLS), region, mask)
    assert flat.precision == pytest.approx(mask.mean()) == flat.share
    assert flat.overlaps == (0.0,) * len(AREAS)


def test_ties_are_chosen_together_but_the_minimum_never() -> None:
    pixels = np.array([3.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    truth = np.array([True, True, True, False, True] + [False] * 5)
    found = dict(zip(AREAS, overlaps(pixels, truth), strict=True))
    assert found[0.1] == 1 / 4
    assert found[0.2] == found[0.3] == found[0.8] == 3 / 4


def test_objects_that_are_not_seen(mask: np.ndarray) -> None:
    region = (30.0, 0.0, 50.0, 40.0)
    assert not seen_part(region, mask).any()
    with pytest.raises(DataError, match="no pixel in the region"):
        map_score(np.zeros(CELLS), region, mask)


def test_sums_over_maps_and_categories() -> None:
    def result(photo: str, category: str, hit: bool, precision: float, good: int) -> MapResult:
        areas = [0.1] * len(AREAS)
        areas[good] = 0.9
        return MapResult(photo, category, "m", MapScore(hit, precision, precision / 2, (*areas,)))

    fixed = AREAS.index(FIXED_AREA)
    results = [
        result("1", "cat", True, 0.8, fixed),
        result("1", "dog", False, 0.4, 0),
        result("2", "cat", True, 0.6, 0),
        result("3", "cat", False, 0.2, 0),
    ]
    (found,) = localisation_scores(results).values()
    assert (found.maps, found.photos, found.categories) == (4, 3, 2)
    assert found.pointing.mean == 0.5 and found.precision.mean == pytest.approx(0.5)
    assert found.chance == pytest.approx(0.25)
    assert found.overlap.mean == pytest.approx((0.9 + 3 * 0.1) / 4)
    assert found.best_area == AREAS[0]
    assert found.best_overlap == pytest.approx((3 * 0.9 + 0.1) / 4)
    assert found.category_pointing == pytest.approx((2 / 3 + 0) / 2)
    assert found.category_precision == pytest.approx((1.6 / 3 + 0.4) / 2)
    assert found.category_chance == pytest.approx(found.category_precision / 2)
    assert found.pointing.low < 0.5 < found.pointing.high
    assert localisation_scores(results[::-1]) == {"m": found}


def test_gains_are_of_the_maps_that_both_have() -> None:
    def results(method: str, precisions: dict[tuple[str, str], float]) -> list[MapResult]:
        areas = (0.0,) * len(AREAS)
        return [
            MapResult(*key, method, MapScore(float(value > 0.5), value, 0.1, areas))
            for key, value in precisions.items()
        ]

    own = {("1", "cat"): 0.6, ("2", "cat"): 0.3, ("2", "dog"): 0.9, ("3", "cat"): 0.2}
    rival = {key: value - 0.1 for key, value in own.items() if key[0] != "3"}
    rows = [*results("ours", own), *results("theirs", rival), *results("apart", {("9", "x"): 1.0})]
    found = localisation_gains(rows[::-1], "ours", ["theirs", "apart", "nobody"], resamples=50)
    assert list(found) == ["theirs"]
    # Each map is better by the same: the interval is a point, however much the photos differ.
    assert found["theirs"]["precision"] == pytest.approx((0.1, 0.1, 0.1))
    assert found["theirs"]["pointing"].mean == pytest.approx(1 / 3)
    assert localisation_gains(rows, "nobody", ["theirs"]) == {}
