"""The training loss: the reference's value and gradient, for shared prefixes and padding."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import reference
import tiny
import torch
import transformers

from devil.config import LanguageModelConfig
from devil.language_model import LanguageModel, short_sequence_attention
from devil.loss import caption_loss, pad_captions

TEXTS = [
    "a red circle",
    "a blue square on the left side",
    "line",
    "a white line on the top side again and again",
    "xyzzy",
    "a green",
]


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("lm")
    return tiny.load_tiny_language_model(folder, request.param, dtype=torch.float64)


def prefixes(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, 3, tiny.WIDTH, generator=generator, dtype=torch.float64) / 2
    return values.requires_grad_()


def test_every_tried_family_runs_captions_together(lm: LanguageModel) -> None:
    assert lm.attends_by_caption


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("each", [1, 2, 3])
def test_value_and_gradient_equal_the_reference(
    lm: LanguageModel, each: int, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(lm), "attends_by_caption", together)
    captions = [lm.caption_ids(text) for text in TEXTS]
    fast_prefix, slow_prefix = prefixes(6 // each), prefixes(6 // each)
    with short_sequence_attention(fast_prefix.device):
        fast = caption_loss(lm, fast_prefix, captions)
        fast.mean.backward()
    total, count = reference.caption_loss(lm, slow_prefix, captions)
    (total / count).backward()
    assert fast.tokens == count == sum(len(ids) + 1 for ids in captions)
    torch.testing.assert_close(fast.total, total, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fast.mean, total / count, rtol=1e-10, atol=1e-10)
    assert fast_prefix.grad is not None and fast_prefix.grad.abs().amin(dim=(1, 2)).max() > 0
    # The norms of Llama and Qwen compute in float32, in whatever precision the model is.
    rough = lm.model.config.model_type in ("llama", "qwen2", "qwen3")
    tolerance = dict(rtol=1e-4, atol=1e-6) if rough else dict(rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(fast_prefix.grad, slow_prefix.grad, **tolerance)


def test_gradient_reaches_each_image_from_its_own_captions_alone(lm: LanguageModel) -> None:
    captions = [lm.caption_ids(text) for text in TEXTS[:2]]
    prefix = prefixes(2)
    caption_loss(lm, prefix, [captions[0], []]).total.backward()
    assert prefix.grad is not None
    assert prefix.grad[0].abs().max() > 0
    assert prefix.grad[1].abs().max() == 0


def test_padding_changes_nothing(lm: LanguageModel) -> None:
    captions = [lm.caption_ids(text) for text in TEXTS]
    prefix = prefixes(6)
    alone = [caption_loss(lm, prefix[i : i + 1], [ids]) for i, ids in enumerate(captions)]
    together = caption_loss(lm, prefix, captions)
    torch.testing.assert_close(together.total, sum(part.total for part in alone))
    assert together.tokens == sum(part.tokens for part in alone)


def test_an_empty_caption_has_no_label(lm: LanguageModel) -> None:
    captions = [lm.caption_ids(text) for text in TEXTS[:3]]
    prefix = prefixes(2)
    with_empty = caption_loss(lm, prefix, [captions[0], [], captions[1], captions[2]])
    total, count = reference.caption_loss(lm, prefix, [captions[0], [], captions[1], captions[2]])
    torch.testing.assert_close(with_empty.total, total, rtol=1e-10, atol=1e-10)
    assert with_empty.tokens == count
    nothing = caption_loss(lm, prefix, [[], []])
    nothing.total.backward()  # a worker whose share has no label still takes its step
    assert (nothing.total.item(), nothing.tokens) == (0.0, 0)


def test_a_model_that_ignores_positions_runs_captions_apart() -> None:
    """BLOOM has biases of distance (ALiBi) instead of positions."""
    tokenizer = tiny.tiny_tokenizer("llama")
    config = transformers.BloomConfig(
        vocab_size=len(tokenizer), hidden_size=tiny.WIDTH, n_layer=2, n_head=2
    )
    torch.manual_seed(0)
    model = transformers.BloomForCausalLM(config).double()
    bloom = LanguageModel(model, tokenizer, LanguageModelConfig(name="bloom"))
    assert not bloom.packs and not bloom.attends_by_caption
    captions = [bloom.caption_ids(text) for text in TEXTS[:4]]
    total, count = reference.caption_loss(bloom, prefixes(2), captions)
    fast = caption_loss(bloom, prefixes(2), captions)
    assert fast.tokens == count
    torch.testing.assert_close(fast.total, total, rtol=1e-6, atol=1e-6)


def random_model(config: Any, model: Any) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(
        model(config).double(), tiny.tiny_tokenizer("llama"), LanguageModelConfig(name="random")
    )


def test_a_sliding_window_shorter_than_captions() -> None:
    """Mistral's layers see so many tokens back; a caption's end may be beyond it from BOS."""
    config = transformers.MistralConfig(
        vocab_size=len(tiny.tiny_tokenizer("llama")),
        hidden_size=tiny.WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=11,
    )
    mistral = random_model(config, transformers.MistralForCausalLM)
    assert mistral.attends_by_caption and mistral.attention_window == 11
    for captions in ([[7, 8], [9]], [[7, 8, 9] * 4, [9]]):
        total, _ = reference.caption_loss(mistral, prefixes(2), captions)
        found = caption_loss(mistral, prefixes(2), captions)
        torch.testing.assert_close(found.total, total, rtol=1e-5, atol=1e-5)


def test_a_model_that_breaks_without_a_mask_runs_captions_apart() -> None:
    vocabulary = len(tiny.tiny_tokenizer("llama"))
    config = transformers.MptConfig(
        vocab_size=vocabulary, d_model=tiny.WIDTH, n_layers=2, n_heads=4, max_seq_len=64
    )
    mpt = random_model(config, transformers.MptForCausalLM)
    assert not mpt.attends_by_caption
    captions = [[7, 8], [9, 8, 7]]
    total, _ = reference.caption_loss(mpt, prefixes(2), captions)
    torch.testing.assert_close(caption_loss(mpt, prefixes(2), captions).total, total)


def test_checkpointed_layers_run_captions_apart(tmp_path: Path) -> None:
    """Layers that run again in the backward pass would do so without the row's layout."""
    lm = tiny.load_tiny_language_model(tmp_path, "llama", dtype=torch.float64)
    captions = [lm.caption_ids(text) for text in TEXTS]
    plain, again = prefixes(6), prefixes(6)
    caption_loss(lm, plain, captions).total.backward()
    lm.model.gradient_checkpointing_enable({"use_reentrant": False})
    with lm.with_dropout(True):
        caption_loss(lm, again, captions).total.backward()
    torch.testing.assert_close(again.grad, plain.grad, rtol=1e-4, atol=1e-6)


def test_two_threads_on_one_model(tmp_path: Path) -> None:
    """A loss in one thread, another beside it, and the model used as usual in a third."""
    lm = tiny.load_tiny_language_model(tmp_path, "llama")
    captions = [lm.caption_ids(text) for text in TEXTS]
    prefix = prefixes(6).float().detach()
    embeddings = lm.embed(torch.tensor([[5, 6, 7, 8, 9]]))

    def loss(_: int) -> float:
        return caption_loss(lm, prefix, captions).total.item()

    def usual(_: int) -> float:
        return lm.hidden(embeddings).last_hidden_state.double().sum().item()

    expected = loss(0), usual(0)
    with ThreadPoolExecutor(3) as pool:
        losses, others, hidden = pool.map(loss, range(60)), pool.map(loss, range(60)), None
        hidden = pool.map(usual, range(120))
        assert set(losses) == set(others) == {expected[0]}
        assert set(hidden) == {expected[1]}
    assert lm.model.config._attn_implementation == "sdpa"


def test_dropout_of_the_language_model_stays_its_own(tmp_path: Path) -> None:
    """Its first use may be with dropout active, as in training; what it can do does not change."""
    lm = tiny.load_tiny_language_model(tmp_path, "opt")
    lm.model.config.attention_dropout = 0.9
    for layer in lm.model.base_model.decoder.layers:
        layer.dropout = layer.self_attn.dropout = 0.9
    captions = [lm.caption_ids(text) for text in TEXTS]
    prefix = prefixes(6).float()
    with lm.with_dropout(True):
        noisy = [caption_loss(lm, prefix, captions).total.item() for _ in range(2)]
        assert lm.attends_by_caption and lm.model.training
    assert noisy[0] != noisy[1]
    quiet = [caption_loss(lm, prefix, captions).total.item() for _ in range(2)]
    assert quiet[0] == quiet[1]


def test_labels_are_the_caption_and_its_end() -> None:
    labels, real = pad_captions([[5, 6], [], [7, 8, 9]], 1, torch.device("cpu"))
    assert [row[mask].tolist() for row, mask in zip(labels, real, strict=True)] == [
        [5, 6, 1],
        [],
        [7, 8, 9, 1],
    ]


def test_low_precision_follows(tmp_path: Path) -> None:
    """bfloat16 autocast, as in training on processors that have it, stays near float32."""
    lm = tiny.load_tiny_language_model(tmp_path, "gpt2")
    captions = [lm.caption_ids(text) for text in TEXTS]
    prefix = prefixes(6).float()
    exact = caption_loss(lm, prefix, captions).mean
    with torch.autocast("cpu", torch.bfloat16):
        rough = caption_loss(lm, prefix, captions).mean
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.05)
