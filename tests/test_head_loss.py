"""The loss behind a frozen head: value and gradient of the direct way, whatever the chunks."""

from collections.abc import Callable

import pytest
import tiny
import torch
import torch.nn.functional as F
import transformers

import devil.head_loss
from devil.config import LanguageModelConfig
from devil.head_loss import label_loss
from devil.language_model import LanguageModel


def wrapped(config: transformers.PretrainedConfig, family: str = "llama") -> LanguageModel:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    return LanguageModel(model, tiny.tiny_tokenizer(family), LanguageModelConfig(name=family))


def gpt2() -> LanguageModel:
    return wrapped(
        transformers.GPT2Config(
            vocab_size=320, n_embd=24, n_layer=1, n_head=2, initializer_range=0.3
        ),
        "gpt2",
    )


def phi() -> LanguageModel:
    """A head with a bias."""
    config = transformers.PhiConfig(
        vocab_size=320,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    lm = wrapped(config)
    torch.nn.init.normal_(lm.model.get_output_embeddings().bias)
    return lm


def granite() -> LanguageModel:
    """A head whose logits are scaled."""
    config = transformers.GraniteConfig(
        vocab_size=320,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        logits_scaling=3.0,
        initializer_range=0.3,
    )
    return wrapped(config)


def example(rows: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, 24, generator=generator)
    return hidden, torch.randint(320, (rows,), generator=generator)


def value_and_gradient(
    loss: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = hidden.clone().requires_grad_()
    value = loss(hidden) * 0.5
    value.backward()
    assert hidden.grad is not None
    return value.detach(), hidden.grad


def direct(lm: LanguageModel, labels: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda hidden: F.cross_entropy(lm.logits(hidden), labels, reduction="sum")


@pytest.mark.parametrize("make", [gpt2, phi, granite])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_equals_the_direct_way(
    make: Callable[[], LanguageModel], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = make()
    monkeypatch.setitem(devil.head_loss.CHUNK_BYTES, "cpu", chunk * 320 * 4)
    monkeypatch.setattr(devil.head_loss, "CHUNK_ROWS", 1)
    hidden, labels = example()
    value, gradient = value_and_gradient(lambda h: label_loss(lm, h, labels), hidden)
    expected, slow = value_and_gradient(direct(lm, labels), hidden)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, slow, rtol=1e-5, atol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(label_loss(lm, hidden, labels), 2 * value)


def test_the_logits_of_all_rows_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = gpt2()
    monkeypatch.setitem(devil.head_loss.CHUNK_BYTES, "cpu", 4 * 320 * 4)
    monkeypatch.setattr(devil.head_loss, "CHUNK_ROWS", 1)
    made: list[int] = []
    softmax = torch.log_softmax

    def watched(scores: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        made.append(len(scores))
        return softmax(scores, *arguments, **options)

    monkeypatch.setattr(torch, "log_softmax", watched)
    label_loss(lm, *example(11))
    assert made == [4, 4, 4]


def test_bfloat16_is_that_of_autocast() -> None:
    lm = gpt2()
    hidden, labels = example()
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = value_and_gradient(lambda h: label_loss(lm, h, labels), hidden)
        expected, slow = value_and_gradient(direct(lm, labels), hidden)
    assert value.dtype == torch.float32 and gradient.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(gradient, slow, rtol=2e-2, atol=2e-2)


def test_a_head_that_learns_keeps_its_gradient() -> None:
    lm = gpt2()
    head = lm.model.get_output_embeddings()
    head.weight.requires_grad_()
    label_loss(lm, *example()).backward()
    assert head.weight.grad is not None and head.weight.grad.abs().max() > 0
