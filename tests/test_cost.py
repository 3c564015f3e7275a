"""Counted work is what PyTorch's own counter sees in a forward pass without padding."""

from pathlib import Path

import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

from devil import caption_attention, cost
from devil.cost import (
    language_model_attention,
    matrix_rate,
    matrix_weights,
    peak_memory,
    training_flops,
)
from devil.language_model import short_sequence_attention
from devil.loss import caption_loss
from devil.translator import Translator


@pytest.mark.parametrize("family", ["opt", "opt-projected", "gpt2", "llama"])
def test_language_model_forward(family: str, tmp_path: Path) -> None:
    lm = tiny.load_tiny_language_model(tmp_path, family)
    embeddings = torch.zeros(2, 7, tiny.WIDTH)
    cpu = torch.device("cpu")
    with FlopCounterMode(display=False) as counter, short_sequence_attention(cpu):
        lm.hidden(embeddings, use_cache=False)
    expected = 2 * matrix_weights(lm.model.base_model) * 14
    # Rotations of positions are a few small products.
    expected += language_model_attention(lm).flops(2 * 49)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_training_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_attention, "LENGTHS", 1)  # no filling, which is not counted
    monkeypatch.setattr(caption_attention, "WIDTHS", 1)
    lm = tiny.load_tiny_language_model(tmp_path, "opt")
    translator = Translator(tiny.SMALL, {"a": 6, "b": 8}, lm.embedding_width)
    features = {"a": torch.randn(2, 6), "b": torch.randn(2, 8)}
    visible = torch.ones(2, 2, dtype=torch.bool)
    captions = [[5, 6, 7, 8], [9, 10, 11, 12]]
    needed = training_flops(translator, lm, visible, captions)
    assert lm.attends_by_caption  # found out once, by a few runs of the model
    with (
        FlopCounterMode(display=False) as counter,
        short_sequence_attention(torch.device("cpu")),
    ):
        caption_loss(lm, translator(features), captions).total.backward()
    # Features need no gradient, which the formula leaves aside.
    assert needed == pytest.approx(counter.get_total_flops(), rel=0.05)
    fewer = training_flops(translator, lm, torch.tensor([[True, False]] * 2), captions)
    assert fewer < needed


def test_rate_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    clock = iter([0.0, 4.0, 10.0, 12.0])  # two products, of 4 and of 2 seconds
    monkeypatch.setitem(cost.MATRIX_SIDE, "cpu", 64)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    assert matrix_rate(cpu, torch.float32, repeats=2) == 2 * 64**3 / 2
    monkeypatch.undo()
    before = peak_memory(cpu)
    held = torch.ones(before // 4 + 2**25)
    assert peak_memory(cpu) > before and len(held)
