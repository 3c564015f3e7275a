"""Visible tokens alone: PyTorch's own encoder under a mask, outputs and gradients."""

import pytest
import tiny
import torch

from benchmarks.baselines import masked_prefix
from devil.translator import Translator

WIDTHS = {"a": 5, "b": 3, "c": 4}


@pytest.mark.parametrize("rows", [[[1, 0, 1], [0, 1, 0], [1, 1, 1]], [[0, 1, 0], [0, 0, 1]]])
def test_equals_the_masked_encoder(rows: list[list[int]]) -> None:
    torch.manual_seed(0)
    translator = Translator(tiny.SMALL, WIDTHS, 7).double()
    visible = torch.tensor(rows, dtype=torch.bool)
    features = {slot: torch.randn(len(rows), c).double() for slot, c in WIDTHS.items()}
    weights = torch.randn(len(rows), tiny.SMALL.prefix_length, 7).double()
    gradients = []
    for prefix in (translator(features, visible), masked_prefix(translator, features, visible)):
        translator.zero_grad()
        (prefix * weights).sum().backward()
        gradients.append((prefix.detach(), {n: p.grad for n, p in translator.named_parameters()}))
    (one, ours), (two, theirs) = gradients
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)
    for name, gradient in theirs.items():
        assert ours[name] is not None, name  # data-parallel wrappers wait for every gradient
        torch.testing.assert_close(ours[name], gradient, rtol=1e-8, atol=1e-10)
