"""Pooling against its equations, and the draws of feature dropout over many seeds."""

import math

import hypothesis.strategies as st
import pytest
import reference
import torch
from hypothesis import given, settings

from devil.errors import ConfigError
from devil.pooling import (
    dropout_masks,
    location_vectors,
    masked_mean,
    mean_pool,
    resize_map,
    row_generator,
    smooth,
)


def maps(seed: int, batch: int, channels: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 5, 4), (4, 1, 1), (2, 1, 6)])
def test_mean_and_locations(shape: tuple[int, int, int]) -> None:
    feature_map = maps(0, 2, *shape)
    for row in range(2):
        torch.testing.assert_close(
            mean_pool(feature_map)[row], reference.mean_pool(feature_map[row])
        )
    vectors = location_vectors(feature_map)
    for y in range(shape[1]):
        for x in range(shape[2]):
            assert torch.equal(vectors[:, y * shape[2] + x], feature_map[:, :, y, x])


@given(
    st.integers(0, 1000),
    st.tuples(*[st.integers(1, 5)] * 4),
    st.integers(1, 3),
    st.booleans(),
)
@settings(max_examples=40)
def test_masked_mean(seed: int, shape: tuple[int, int, int, int], draws: int, binary: bool) -> None:
    feature_map = maps(seed, *shape)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(shape[0], draws, shape[2] * shape[3], generator=generator)
    weights = weights.double()
    if binary:
        weights = weights >= 0.5
        weights[..., 0] |= ~weights.any(dim=2)
    fast = masked_mean(feature_map, weights)
    for row in range(shape[0]):
        for draw in range(draws):
            slow = reference.masked_mean(feature_map[row], weights[row, draw].tolist())
            torch.testing.assert_close(fast[row, draw], slow)


def test_masked_mean_does_not_rescale() -> None:
    feature_map = torch.full((1, 2, 3, 3), 5.0)
    weights = torch.zeros(1, 1, 9)
    weights[0, 0, 4] = 0.25
    assert torch.equal(masked_mean(feature_map, weights), torch.full((1, 1, 2), 5.0))


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [(5, 4), (2, 7), (1, 1)])
def test_smooth(kernel: int, size: tuple[int, int]) -> None:
    feature_map = maps(1, 2, 3, *size)
    fast = smooth(feature_map, kernel)
    for row in range(2):
        torch.testing.assert_close(fast[row], reference.smooth(feature_map[row], kernel))


@pytest.mark.parametrize("kernel", [0, 2, 4, -1, -3])
def test_smooth_refuses_even_kernels(kernel: int) -> None:
    with pytest.raises(ConfigError, match=f"kernel is {kernel}; allowed: odd"):
        smooth(maps(0, 1, 2, 3, 3), kernel)


@pytest.mark.parametrize("size", [(2, 2), (8, 8), (3, 7), (4, 5)])
def test_resize(size: tuple[int, int]) -> None:
    feature_map = maps(2, 2, 3, 4, 5)
    fast = resize_map(feature_map, size)
    for row in range(2):
        torch.testing.assert_close(fast[row], reference.resize(feature_map[row], size))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("locations", "p"), [(49, 0.5), (4, 0.5), (2, 0.8), (9, 0.0)])
def test_dropout_masks(seed: int, locations: int, p: float) -> None:
    draws = 3000
    keep = dropout_masks(draws, locations, p, torch.Generator().manual_seed(seed))
    assert keep.shape == (draws, locations)
    assert keep.any(dim=1).all()
    expected = (1 - p) / (1 - p**locations)
    bound = 5 * math.sqrt(expected * (1 - expected) / draws) + 1e-12
    assert (keep.double().mean(dim=0) - expected).abs().max() <= bound


def test_one_location_is_never_dropped() -> None:
    assert dropout_masks(1000, 1, 0.9, torch.Generator().manual_seed(0)).all()


def test_only_lost_draws_are_drawn_again() -> None:
    once = torch.rand(400, 3, generator=torch.Generator().manual_seed(7)) >= 0.7
    keep = dropout_masks(400, 3, 0.7, torch.Generator().manual_seed(7))
    whole = once.any(dim=1)
    assert 0 < int((~whole).sum()) < 400
    assert torch.equal(keep[whole], once[whole])


def test_mean_over_draws_is_the_clean_mean() -> None:
    """Whole vectors are dropped without rescaling, so a draw's mean is unbiased."""
    feature_map = maps(3, 1, 4, 3, 3)
    masks = dropout_masks(20000, 9, 0.5, torch.Generator().manual_seed(0))
    drawn = masked_mean(feature_map, masks[None])[0]
    spread = drawn.std(dim=0) / math.sqrt(len(drawn))
    off = (drawn.mean(dim=0) - reference.mean_pool(feature_map[0])).abs()
    assert (off <= 5 * spread).all(), off / spread


def test_row_generator_depends_on_key_and_seed_alone() -> None:
    def draw(seed: int, key: str) -> list[float]:
        return torch.rand(4, generator=row_generator(seed, key)).tolist()

    torch.manual_seed(1)
    first = draw(0, "a")
    torch.manual_seed(2)
    assert draw(0, "a") == first
    # "1|2" with seed 0 is no other name of "2" with another seed.
    others = [draw(1, "a"), draw(0, "b"), draw(0, ""), draw(0, "1|2"), draw(1, "2")]
    assert len({tuple(values) for values in [first, *others]}) == 6
    assert draw(0, "\udc80") == draw(0, "\udc80")  # a file name that is no Unicode
