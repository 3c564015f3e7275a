"""Greedy decoding: the tokens of `generate` of transformers, the reference's probabilities."""

from pathlib import Path
from typing import Any

import pytest
import reference
import tiny
import torch
import transformers

from devil.config import DecodingConfig, LanguageModelConfig
from devil.decoding import greedy_captions
from devil.errors import ConfigError
from devil.explanation import Caption
from devil.language_model import LanguageModel, load_language_model

LONGEST = 14
ROWS = 100


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("lm")
    return tiny.load_tiny_language_model(folder, request.param, dtype=torch.float64)


def prefixes(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, tiny.WIDTH, generator=generator, dtype=torch.float64) / 2


def generated(lm: LanguageModel, prefix: torch.Tensor, longest: int) -> list[list[int]]:
    """What transformers' greedy search writes, up to and with the end token."""
    start = lm.start(prefix)
    rows = lm.model.generate(
        inputs_embeds=start,
        attention_mask=torch.ones(start.shape[:2], dtype=torch.long),
        do_sample=False,
        max_new_tokens=longest,
        eos_token_id=lm.eos,
        pad_token_id=lm.eos,
    ).tolist()
    return [row[: row.index(lm.eos) + 1] if lm.eos in row else row for row in rows]


def test_equals_generate_while_rows_leave_the_batch(lm: LanguageModel) -> None:
    assert lm.bytes_per_position > 0  # runs BOS, whose keys and values all rows then share
    sizes: list[int] = []
    body = lm.model.base_model
    watch = body.register_forward_pre_hook(
        lambda module, arguments, options: sizes.append(len(options["inputs_embeds"])),
        with_kwargs=True,
    )
    captions = greedy_captions(lm, prefixes(ROWS), DecodingConfig(max_new_tokens=LONGEST))
    watch.remove()
    expected = generated(lm, prefixes(ROWS), LONGEST)
    assert [c.tokens for c in captions] == [len(ids) for ids in expected]
    assert [c.text for c in captions] == [lm.text(ids) for ids in expected]
    # Rows that ended took no part in later steps, and ends came at different steps.
    going = [sum(len(ids) > step for ids in expected) for step in range(LONGEST)]
    assert sizes == [
        ROWS,
        *(
            n - sum(e[-1] == lm.eos and len(e) == i + 1 for e in expected)
            for i, n in enumerate(going[:-1])
        ),
    ]
    assert len(set(sizes)) >= 3 and sizes == sorted(sizes, reverse=True)
    assert len({c.text for c in captions}) > 20


def test_log_probabilities_equal_the_reference(lm: LanguageModel) -> None:
    prefix = prefixes(12, seed=1)
    captions = greedy_captions(lm, prefix, DecodingConfig(max_new_tokens=6))
    for row, caption in zip(prefix, captions, strict=True):
        ids, score = reference.greedy(lm, row, 6)
        assert (caption.text, caption.tokens) == (lm.text(ids), len(ids))
        assert caption.log_probability == pytest.approx(score, rel=1e-9)


def test_batches_change_nothing(lm: LanguageModel) -> None:
    def captions(size: int) -> list[Caption]:
        config = DecodingConfig(max_new_tokens=LONGEST, batch_size=size)
        return greedy_captions(lm, prefixes(9), config)

    whole = captions(100)
    for size in (1, 2, 4):
        for one, other in zip(captions(size), whole, strict=True):
            assert (one.text, one.tokens) == (other.text, other.tokens)
            assert one.log_probability == pytest.approx(other.log_probability, rel=1e-9)


def test_equal_prefixes_are_decoded_once(lm: LanguageModel) -> None:
    prefix = prefixes(6)
    assert lm.bytes_per_position > 0
    sizes: list[int] = []
    watch = lm.model.base_model.register_forward_pre_hook(
        lambda module, arguments, options: sizes.append(len(options["inputs_embeds"])),
        with_kwargs=True,
    )
    found = greedy_captions(lm, prefix[[3, 1, 3, 0, 1, 1]])
    watch.remove()
    assert sizes[0] == 3
    alone = greedy_captions(lm, prefix)
    assert [c.text for c in found] == [alone[i].text for i in (3, 1, 3, 0, 1, 1)]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_thousand_prefixes_in_float32(family: str, tmp_path: Path) -> None:
    lm = tiny.load_tiny_language_model(tmp_path, family)
    prefix = prefixes(1000, seed=7).float()
    captions = greedy_captions(lm, prefix, DecodingConfig(max_new_tokens=20))
    expected = generated(lm, prefix, 20)
    assert [c.text for c in captions] == [lm.text(ids) for ids in expected]
    assert [c.tokens for c in captions] == [len(ids) for ids in expected]


@pytest.mark.parametrize(
    "config",
    [
        transformers.MistralConfig(sliding_window=6),
        transformers.BloomConfig(n_layer=2, n_head=4),
    ],
    ids=lambda c: c.model_type,
)
def test_models_with_caches_of_their_own(config: Any) -> None:
    sizes = dict(hidden_size=tiny.WIDTH, intermediate_size=32, num_hidden_layers=2)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, vocab_size=320)
    config.update({**sizes, **heads, "pad_token_id": 0, "initializer_range": 0.5})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().double()
    lm = LanguageModel(model, tiny.tiny_tokenizer("gpt2"), LanguageModelConfig(name="x"))
    captions = greedy_captions(lm, prefixes(20), DecodingConfig(max_new_tokens=9))
    assert [c.text for c in captions] == [lm.text(ids) for ids in generated(lm, prefixes(20), 9)]


def test_the_prefix_decides(lm: LanguageModel) -> None:
    first, second = (greedy_captions(lm, prefixes(8, seed=s)) for s in (0, 1))
    assert [c.text for c in first] != [c.text for c in second]


def test_immediate_end_is_an_empty_caption(tmp_path: Path) -> None:
    lm = tiny.load_tiny_language_model(tmp_path, "qwen2")
    captions = greedy_captions(lm, prefixes(60).float())
    ended = [c for c in captions if c.tokens == 1]
    assert ended and all(c.text == "" and c.log_probability < 0 for c in ended)
    assert len(ended) < len(captions)


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama"])
def test_longest_caption_fills_the_context(family: str, tmp_path: Path) -> None:
    lm = tiny.load_tiny_language_model(tmp_path, family, ending=0.0)
    longest = tiny.CONTEXT - 3 - 1
    captions = greedy_captions(lm, prefixes(2).float(), DecodingConfig(max_new_tokens=longest))
    assert [c.tokens for c in captions] == [longest] * 2
    with pytest.raises(ConfigError, match=rf"context of {tiny.CONTEXT} .*at most {longest}"):
        greedy_captions(lm, prefixes(2).float(), DecodingConfig(max_new_tokens=longest + 1))


def test_no_prefix_rows(lm: LanguageModel) -> None:
    assert greedy_captions(lm, prefixes(0)) == []


@pytest.mark.real
@pytest.mark.parametrize("name", ["caption-gpt2", "stories260k"])
def test_real_models(name: str, real_data: Path) -> None:
    lm = load_language_model(str(real_data / "models" / name))
    words = ["a dog runs", "two children play", "once upon a time"]
    ids = [lm.caption_ids(text)[:3] for text in words]
    prefix = lm.embed(torch.tensor(ids))
    captions = greedy_captions(lm, prefix, DecodingConfig(max_new_tokens=25))
    expected = generated(lm, prefix, 25)
    assert [c.text for c in captions] == [lm.text(row) for row in expected]
    for caption in captions:  # trained models write words and are fairly sure of them
        assert len(caption.text.split()) >= 2
        assert caption.token_probability > 0.1
