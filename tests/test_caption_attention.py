"""The row of captions behind prefixes: every token once, and its labels' places."""

import pytest
import torch

from devil.caption_attention import GROUPS, LENGTHS, WIDTHS, caption_layout, length_groups

BOS, EOS, PREFIX = 90, 91, 3


def test_layout_of_a_small_batch() -> None:
    layout = caption_layout([[1, 2], [3], [], [4, 5, 6, 7]], 2, bos=BOS, eos=EOS, prefix=PREFIX)
    start = [BOS, EOS, EOS, EOS]
    tokens = [*start, *start, 3, 1, 2, 4, 5, 6, 7]  # shortest first
    assert layout.ids.tolist() == tokens + [EOS] * (LENGTHS - len(tokens))
    assert layout.positions[: len(tokens)].tolist() == [0, 1, 2, 3] * 2 + [4, 4, 5, 4, 5, 6, 7]
    assert layout.prefix.tolist() == [1, 2, 3, 5, 6, 7]
    pairs = list(zip(layout.predicting.tolist(), layout.labels.tolist(), strict=True))
    first = [(3, 3), (8, EOS), (3, 1), (9, 2), (10, EOS)]
    assert pairs == [*first, (7, 4), (11, 5), (12, 6), (13, 7), (14, EOS)]
    assert [group.first for group in layout.groups] == [8, 9, 11]
    assert [group.image.tolist() for group in layout.groups] == [[0], [0], [1]]
    assert [len(group.places) for group in layout.groups] == [1, 2, 4]
    assert {group.width for group in layout.groups} == {WIDTHS}


def test_a_group_is_a_rectangle() -> None:
    layout = caption_layout(
        [[1] * n for n in (5, 1, 3, 6, 2, 2, 4, 6)], 4, bos=BOS, eos=EOS, prefix=2
    )
    short, *_, long = layout.groups
    assert (short.width, short.places.tolist()) == (4, [0, 4, 5])
    assert (long.width, long.places.tolist()) == (8, [*range(6), *range(8, 14)])
    assert long.image.tolist() == [1, 3]


@pytest.mark.parametrize("lengths", [[5], [9, 3, 0, 3, 20, 4, 11, 1]])
def test_groups(lengths: list[int]) -> None:
    groups = length_groups(lengths)
    full = [i for i, length in enumerate(lengths) if length]
    assert sorted(i for group in groups for i in group) == full
    found = [lengths[i] for group in groups for i in group]
    assert found == sorted(found)
    assert len(groups) <= GROUPS and max(map(len, groups)) <= len(full) // len(groups) + 1


def test_only_empty_captions() -> None:
    layout = caption_layout([[], []], 2, bos=None, eos=EOS, prefix=PREFIX)
    assert layout.groups == () and len(layout.labels) == len(layout.predicting) == 0
    assert torch.equal(layout.prefix, torch.arange(2 * PREFIX))
