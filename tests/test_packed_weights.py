"""Blocked copies of weights: the same products, also after the weights have changed."""

import copy
import gc
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.utils.parametrize
from torch import nn
from transformers.pytorch_utils import Conv1D

import devil.packed_weights
from devil.packed_weights import PackableLinear, make_packable, packed_weights


@pytest.fixture(autouse=True)
def small_matrices_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devil.packed_weights, "LEAST", 1)


BOTH = pytest.mark.parametrize("kind", [nn.Linear, Conv1D])


def module_of(kind: type, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    module = kind(48, 80) if kind is nn.Linear else kind(80, 48)
    nn.init.normal_(module.bias)
    module = nn.Sequential(module.to(dtype).requires_grad_(False))
    make_packable(module)
    return module


def copies() -> int:
    gc.collect()
    return len(devil.packed_weights._copies)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 48), (7, 48), (2, 3, 48), (0, 48)])
def test_the_same_products(kind: type, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    module, before = module_of(kind, dtype), copies()
    given = torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)[..., ::2]  # not contiguous
    with torch.inference_mode():
        usual = module(given)
        assert copies() == before
        with packed_weights():
            packed = module(given)
    assert packed.shape == usual.shape and packed.dtype == usual.dtype
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(packed, usual, rtol=tolerance, atol=tolerance)
    possible = devil.packed_weights._possible(dtype) and given.numel() > 0
    assert copies() == before + possible
    del module
    assert copies() == before


def test_this_machine_packs() -> None:
    assert devil.packed_weights._possible(torch.float32) == torch.backends.mkldnn.is_available()
    assert not devil.packed_weights._possible(torch.float64)


@BOTH
def test_weights_that_change(kind: type) -> None:
    module, given = module_of(kind), torch.randn(3, 48)
    (weight,) = (p for name, p in module.named_parameters() if name.endswith("weight"))
    with torch.no_grad(), packed_weights():
        first = module(given)
        weight.mul_(2)
        second = module(given)
        weight.data = weight.data.clone().mul_(2)
        third = module(given)
        twin = copy.deepcopy(module)
        twin[0].weight.zero_()
        assert torch.equal(module(given), third)
        torch.testing.assert_close(twin(given), module[0].bias.expand(3, 80))
    bias = module[0].bias
    torch.testing.assert_close(second - bias, 2 * (first - bias))
    torch.testing.assert_close(third - bias, 4 * (first - bias))


@BOTH
def test_weights_that_move(kind: type) -> None:
    """Memory that is free again may come back at the same address, with other numbers."""
    module, given, before = module_of(kind), torch.randn(3, 48), copies()
    with torch.inference_mode(), packed_weights():
        for factor in (2, 3, 5):
            for weight in module.parameters():
                weight.data = weight.data * factor
            with packed_weights(False):
                expected = module(given)
            torch.testing.assert_close(module(given), expected, rtol=1e-5, atol=1e-4)
    module.to(torch.float64)
    assert copies() == before


def test_weights_that_are_computed() -> None:
    module, before = module_of(nn.Linear), copies()
    nn.utils.parametrize.register_parametrization(module[0], "weight", nn.Softplus())
    with torch.no_grad(), packed_weights():
        module(torch.randn(3, 48))
    assert copies() == before


def test_gradients_take_the_usual_way() -> None:
    module, given, before = module_of(nn.Linear), torch.randn(3, 48, requires_grad=True), copies()
    with packed_weights():
        module(given).sum().backward()
    assert given.grad is not None and copies() == before
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), packed_weights():
        assert module(given).dtype == torch.bfloat16 and copies() == before


def test_small_matrices_are_left_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devil.packed_weights, "LEAST", 48 * 80 + 1)
    single, half, before = module_of(nn.Linear), module_of(nn.Linear, torch.bfloat16), copies()
    with torch.no_grad(), packed_weights():
        single(torch.randn(3, 48))
        assert copies() == before
        half(torch.randn(3, 48).bfloat16())
    assert copies() == before + devil.packed_weights._possible(torch.bfloat16)


def test_only_plain_layers() -> None:
    class Scaled(nn.Linear):
        pass

    module = nn.Sequential(Scaled(4, 4), nn.Linear(4, 4))
    names = list(module.state_dict())
    make_packable(module)
    assert type(module[0]) is Scaled and type(module[1]) is PackableLinear
    assert list(module.state_dict()) == names


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_language_models(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny.load_tiny_language_model(tmp_path, family)
    embeddings = torch.randn(5, 6, tiny.WIDTH, generator=torch.Generator().manual_seed(1))
    before = copies()
    with torch.inference_mode():
        packed = lm.logits(lm.hidden(embeddings).last_hidden_state)
        assert copies() > before
        monkeypatch.setitem(vars(lm), "_room_to_pack", False)
        usual = lm.logits(lm.hidden(embeddings).last_hidden_state)
        own = lm.model(inputs_embeds=embeddings).logits  # the model itself is as it was
    lm.set_dtype(torch.float64)
    assert copies() == before
    torch.testing.assert_close(packed, usual, rtol=1e-4, atol=1e-4)
    assert torch.equal(usual, own)
