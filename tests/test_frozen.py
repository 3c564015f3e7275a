"""Matrices cast once: the loss of autocast to the last bit, and the given model as it was."""

from pathlib import Path

import pytest
import tiny
import torch

from devil.frozen import with_matrices_in
from devil.loss import caption_loss


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_loss_and_gradient_are_those_of_autocast(family: str, tmp_path: Path) -> None:
    lm = tiny.load_tiny_language_model(tmp_path, family)
    digest = lm.digest()
    cast = with_matrices_in(lm, torch.bfloat16)
    captions = [lm.caption_ids(text) for text in ("a red circle", "line", "a blue square")]
    found = []
    for model in (lm, cast):
        generator = torch.Generator().manual_seed(0)
        prefix = torch.randn(3, 3, tiny.WIDTH, generator=generator).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = caption_loss(model, prefix, captions).total
        loss.backward()
        assert prefix.grad is not None and prefix.grad.abs().max() > 0
        found.append((float(loss.detach()), prefix.grad))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert lm.digest() == digest != cast.digest()
    assert {p.dtype for p in lm.parameters()} == {torch.float32}
    embeddings = cast.model.get_input_embeddings().weight
    assert embeddings.data_ptr() == lm.model.get_input_embeddings().weight.data_ptr()
    assert cast.model.get_output_embeddings().weight.dtype == torch.bfloat16


def test_nothing_to_cast(tmp_path: Path) -> None:
    lm = tiny.load_tiny_language_model(tmp_path)
    assert with_matrices_in(lm, torch.float32) is lm
