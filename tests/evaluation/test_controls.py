"""Captions that need no translator."""

import pytest
import torch

from devil.errors import DataError
from devil.evaluation.controls import most_frequent_caption, nearest_captions


def test_the_most_frequent_caption_wins_and_ties_are_sorted() -> None:
    assert most_frequent_caption([["b", "a"], ["b", "c"]]) == "b"
    assert most_frequent_caption([["d", "c"], ["d", "c"]]) == "c"
    with pytest.raises(DataError, match="no captions"):
        most_frequent_caption([[]])


def test_the_nearest_photo_is_found_after_centring() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(20, 8, generator=generator) + 50
    references = [[f"photo {i}", "other"] for i in range(20)]
    rows = bank[[3, 17]] + 0.01 * torch.randn(2, 8, generator=generator)
    assert nearest_captions(rows, bank, references) == ["photo 3", "photo 17"]
