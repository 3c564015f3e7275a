"""Which weights a training keeps, and when it stops, also when it was stopped in between."""

import logging
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from devil.config import TrainingConfig
from devil.selection import BEST, Selection


class Weights(nn.Module):
    """One weight, and a buffer, which are kept alike."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("mean", torch.zeros(1))

    def become(self, value: float) -> None:
        with torch.no_grad():
            self.weight.fill_(value)
            self.get_buffer("mean").fill_(-value)


def offered(selection: Selection, weights: Weights, scores: list[tuple[int, float]]) -> None:
    """Offer weights that say after which step they came; a score stands under both names."""
    for step, score in scores:
        weights.become(step)
        selection.offer(step, {"cider_all": score, "validation_loss": score}, weights)


def selection(**options: Any) -> Selection:
    return Selection(TrainingConfig(**options))


@pytest.mark.parametrize(("select", "best"), [("cider", 3), ("loss", 2)])
def test_the_first_of_the_best(select: str, best: int) -> None:
    chosen, weights = selection(select=select), Weights()
    offered(chosen, weights, [(1, 0.5), (2, 0.1), (3, 0.9), (4, 0.1), (5, 0.9)])
    assert chosen.restore(weights) == best == chosen.step
    assert (weights.weight.item(), weights.get_buffer("mean").item()) == (best, -best)


def test_patience_counts_validations_in_a_row() -> None:
    chosen, weights = selection(select="cider", patience=2), Weights()
    for step, (score, ended) in enumerate([(1, 0), (0, 0), (2, 0), (2, 0), (1, 1)]):
        assert not chosen.exhausted
        offered(chosen, weights, [(step, float(score))])
        assert chosen.exhausted == bool(ended)


def test_the_last_weights_stay_when_nothing_selects(caplog: pytest.LogCaptureFixture) -> None:
    weights = Weights()
    last, without_scores = selection(), selection(select="loss", patience=1)
    offered(last, weights, [(1, 2.0), (2, 3.0)])
    without_scores.offer(1, {"cider_all": 1.0}, weights)  # every caption too long for a loss
    assert last.restore(weights) is None and not caplog.text
    with caplog.at_level(logging.WARNING):
        assert without_scores.restore(weights) is None
    assert "no validation gave a score" in caplog.text and not without_scores.exhausted
    assert weights.weight.item() == 2


def test_saved_and_loaded_goes_on_as_uninterrupted(tmp_path: Path) -> None:
    scores = [(1, 0.25), (2, 1 / 3), (3, 0.3), (4, 0.1), (5, 0.2)]
    for cut in range(len(scores)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        first, weights = selection(select="cider", patience=3), Weights()
        offered(first, weights, scores[:cut])
        second = selection(select="cider", patience=3)
        second.load(folder, first.save(folder))
        offered(second, weights, scores[cut:])
        assert second.exhausted and second.score == 1 / 3
        assert second.restore(weights) == 2 == weights.weight.item()


def test_what_was_loaded_does_not_need_its_file(tmp_path: Path) -> None:
    first, second, weights = selection(select="cider"), selection(select="cider"), Weights()
    offered(first, weights, [(3, 0.5)])
    second.load(tmp_path, first.save(tmp_path))
    tiny.overwrite(tmp_path / BEST)
    assert second.restore(weights) == 3 == weights.weight.item()
