"""Rows of captions: every sequence once, little filling, and each position sees its own text."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devil.caption_rows import NOBODY, length_buckets, packed_rows, shared_rows

BOS, EOS, PREFIX = 90, 91, 3


def test_layout_of_a_small_batch() -> None:
    rows = packed_rows([[1, 2], [3], [], [4, 5, 6]], 2, bos=BOS, eos=EOS, prefix=PREFIX, context=7)
    assert rows.ids.shape == (2, 7)
    by_image = {int(row.max()): i for i, row in enumerate(rows.image)}
    first, second = by_image[0], by_image[1]
    assert rows.ids[first].tolist() == [BOS, EOS, EOS, EOS, 1, 2, 3]
    assert rows.ids[second].tolist() == [BOS, EOS, EOS, EOS, 4, 5, 6]
    assert rows.caption[first].tolist() == [NOBODY] * 4 + [0, 0, 1]
    assert rows.caption[second].tolist() == [NOBODY] * 4 + [1, 1, 1]
    assert rows.positions[first].tolist() == [0, 1, 2, 3, 4, 5, 4]
    starts = [first * 7, second * 7]
    assert rows.prefix.tolist() == [s + i for s in starts for i in (1, 2, 3)]
    pairs = set(zip(rows.predicting.tolist(), rows.labels.tolist(), strict=True))
    a, b = starts
    expected = {(a + 3, 1), (a + 4, 2), (a + 5, EOS), (a + 3, 3), (a + 6, EOS)}
    assert pairs == expected | {(b + 3, 4), (b + 4, 5), (b + 5, 6), (b + 6, EOS)}


def test_each_position_sees_its_prefix_and_its_own_caption() -> None:
    captions = [[1, 2], [3], [4], [5, 6, 7]]
    rows = packed_rows(captions, 2, bos=None, eos=EOS, prefix=2, context=64)
    assert rows.ids.shape[0] == 1  # both images in one row
    mask = rows.mask()[0, 0]
    image, caption = rows.image[0].tolist(), rows.caption[0].tolist()
    for asking in range(len(image)):
        for answering in range(len(image)):
            sees = answering <= asking and image[answering] == image[asking]
            sees = sees and caption[answering] in (NOBODY, caption[asking])
            assert bool(mask[asking, answering]) == sees
    assert mask.any(dim=1).all()


@given(st.lists(st.integers(1, 90), min_size=1, max_size=80))
def test_shared_rows_hold_each_sequence_once(lengths: list[int]) -> None:
    rows = shared_rows(lengths, 128)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    width = max(sum(lengths[i] for i in row) for row in rows)
    assert width <= 128
    assert len(rows) * width <= len(lengths) * max(lengths)  # never worse than padding


def test_little_is_filled() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = (11 + torch.randn(64, generator=generator).mul(0.4).add(2.4).exp()).long().tolist()
    rows = shared_rows(lengths, 2048)
    width = max(sum(lengths[i] for i in row) for row in rows)
    assert len(rows) * width < 1.1 * sum(lengths) < 0.8 * len(lengths) * max(lengths)


@pytest.mark.parametrize("lengths", [[5], [9, 3, 3, 20, 4, 11]])
def test_buckets(lengths: list[int]) -> None:
    groups = length_buckets(lengths)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        found = [lengths[i] for i in group]
        assert max(found) <= 1.25 * min(found)


def test_only_empty_captions() -> None:
    rows = packed_rows([[], []], 2, bos=BOS, eos=EOS, prefix=PREFIX, context=64)
    assert len(rows.labels) == len(rows.predicting) == 0
    assert len(rows.prefix) == 2 * PREFIX
