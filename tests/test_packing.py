"""Packed texts: who stands where, and who sees whom."""

import torch

from devil.packing import FILLING, pack

CPU = torch.device("cpu")


def test_texts_stand_behind_one_another_and_count_their_places_anew() -> None:
    packed = pack([[[5, 6, 7], [8]], [[9, 10]]], 1, CPU)
    assert packed.ids.tolist() == [[5, 6, 7, 8], [9, 10, 1, 1]]
    assert packed.owner.tolist() == [[0, 0, 0, 1], [0, 0, FILLING, FILLING]]
    assert packed.positions(2).tolist() == [[0, 1, 2, 3, 4, 2], [0, 1, 2, 3, 2, 2]]


def test_a_token_sees_the_prefix_and_what_its_own_text_said_before() -> None:
    mask = pack([[[5, 6], [8, 9]]], 1, CPU).mask(2)
    assert mask.shape == (1, 1, 6, 6)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]


def test_rows_without_texts_are_filling() -> None:
    packed = pack([[[]], []], 7, CPU)
    assert packed.ids.shape == (2, 0)
    assert pack([[], [[3]]], 7, CPU).owner.tolist() == [[FILLING], [0]]
