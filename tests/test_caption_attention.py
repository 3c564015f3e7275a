"""The row of captions behind prefixes: every token once, and its labels' places."""

import pytest
import torch

from devil.caption_attention import SLACK, caption_layout, length_groups

BOS, EOS, PREFIX = 90, 91, 3


def test_layout_of_a_small_batch() -> None:
    layout = caption_layout([[1, 2], [3], [], [4, 5, 6, 7]], 2, bos=BOS, eos=EOS, prefix=PREFIX)
    start = [BOS, EOS, EOS, EOS]
    tokens = [*start, *start, 3, 1, 2, 4, 5, 6, 7]  # shortest first
    assert layout.ids.tolist() == tokens + [EOS] * (LENGTHS - len(tokens))
    assert layout.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 4, 5, 4, 5, 6, 7]
    assert layout.prefix.tolist() == [1, 2, 3, 5, 6, 7]
    pairs = list(zip(layout.predicting.tolist(), layout.labels.tolist(), strict=True))
    first = [(3, 3), (8, EOS), (3, 1), (9, 2), (10, EOS)]
    assert pairs == [*first, (7, 4), (11, 5), (12, 6), (13, 7), (14, EOS)]
    short, long = layout.groups
    assert (short.first, short.width, short.image.tolist()) == (8, 2, [0, 0])
    assert short.places.tolist() == [0, 2, 3]  # of a rectangle of 2 captions × 2 tokens
    assert (long.first, long.width, long.image.tolist()) == (11, 4, [1])


@pytest.mark.parametrize("lengths", [[5], [9, 3, 0, 3, 20, 4, 11, 1]])
def test_groups(lengths: list[int]) -> None:
    groups = length_groups(lengths)
    full = [i for i, length in enumerate(lengths) if length]
    assert sorted(i for group in groups for i in group) == full
    for group in groups:
        found = [lengths[i] for i in group]
        assert found == sorted(found) and found[-1] <= SLACK * found[0]


def test_only_empty_captions() -> None:
    layout = caption_layout([[], []], 2, bos=None, eos=EOS, prefix=PREFIX)
    assert layout.groups == () and len(layout.labels) == len(layout.predicting) == 0
    assert torch.equal(layout.prefix, torch.arange(2 * PREFIX))
