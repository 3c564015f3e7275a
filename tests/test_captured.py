"""Decoding in fixed shapes: the same tokens and scores, in memory that stays where it is."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers

from devil.captured import FixedGreedy
from devil.config import DecodingConfig, LanguageModelConfig
from devil.decoding import captions_of, greedy_captions
from devil.errors import ConfigError
from devil.explanation import Caption
from devil.language_model import LanguageModel
from devil.prefill import prefill, prefills

LONGEST = 14


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("lm")
    return tiny.load_tiny_language_model(folder, request.param, dtype=torch.float64)


def prefixes(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, tiny.WIDTH, generator=generator, dtype=torch.float64) / 2


def fixed(
    lm: LanguageModel, prefix: torch.Tensor, longest: int, *, patience: int, batch: int
) -> list[Caption]:
    greedy, captions = FixedGreedy(lm, longest, patience=patience), []
    for state in prefills(lm, prefix, longest, batch_size=batch):
        captions += captions_of(lm, *(t.tolist() for t in greedy(state)))
    return captions


def assert_same(found: list[Caption], expected: list[Caption]) -> None:
    assert [(c.text, c.tokens) for c in found] == [(c.text, c.tokens) for c in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, rel=1e-9)


@pytest.mark.parametrize("patience", [1, 3, 50])
def test_says_what_the_usual_way_says(lm: LanguageModel, patience: int) -> None:
    prefix = prefixes(100)
    expected = greedy_captions(lm, prefix, DecodingConfig(max_new_tokens=LONGEST))
    assert len({c.tokens for c in expected}) >= 3
    # The second batch uses the first one's memory, and the last one does not fill it.
    for batch in (100, 60, 33):
        assert_same(fixed(lm, prefix, LONGEST, patience=patience, batch=batch), expected)


def test_shapes_are_few_and_memory_stays(lm: LanguageModel) -> None:
    sizes: list[int] = []
    places: set[int] = set()
    widths: set[int] = set()

    def note(module: Any, arguments: Any, options: dict[str, Any]) -> None:
        sizes.append(len(options["inputs_embeds"]))
        cache, mask = options["past_key_values"], options["attention_mask"]
        places.update((mask.data_ptr(), options["position_ids"].data_ptr()))
        places.update(layer.keys.data_ptr() for layer in cache.layers)
        widths.add(mask.shape[-1])

    prefix = prefixes(100)
    usual = greedy_captions(lm, prefix, DecodingConfig(max_new_tokens=LONGEST))
    ending = [i for i, caption in enumerate(usual) if caption.tokens < LONGEST]
    going = [i for i, caption in enumerate(usual) if caption.tokens == LONGEST]
    rows = [*(ending * 60)[:60], *(going * 10)[:10]]
    assert len(rows) == 70
    state = prefill(lm, prefix[rows], LONGEST)
    greedy = FixedGreedy(lm, LONGEST, patience=2)
    watch = lm.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    greedy(state)
    watch.remove()
    assert set(sizes) <= {70, 35, 18, 9} and len(set(sizes)) >= 2
    assert sizes == sorted(sizes, reverse=True)
    assert len(places) == 2 + len(state.cache.layers) and len(widths) == 1


def test_one_token_and_one_row(lm: LanguageModel) -> None:
    for rows, longest in ((1, 1), (1, 5), (3, 1)):
        expected = greedy_captions(lm, prefixes(rows), DecodingConfig(max_new_tokens=longest))
        assert_same(fixed(lm, prefixes(rows), longest, patience=2, batch=8), expected)


def test_a_full_context(tmp_path: Path) -> None:
    lm = tiny.load_tiny_language_model(tmp_path, "opt", ending=0.0)
    longest = tiny.CONTEXT - 3 - 1
    expected = greedy_captions(lm, prefixes(2).float(), DecodingConfig(max_new_tokens=longest))
    found = fixed(lm, prefixes(2).float(), longest, patience=8, batch=8)
    assert [(c.text, c.tokens) for c in found] == [(c.text, c.tokens) for c in expected]


def test_a_processor_is_refused(tmp_path: Path) -> None:
    lm = tiny.load_tiny_language_model(tmp_path, "gpt2")
    with pytest.raises(
        ConfigError, match=r"captured is True, .* on 'cpu'.*Leave captured at False"
    ):
        greedy_captions(lm, prefixes(2).float(), DecodingConfig(captured=True))


def test_other_states_are_refused() -> None:
    config = transformers.MistralConfig(
        sliding_window=6, hidden_size=tiny.WIDTH, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=320,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    lm = LanguageModel(model, tiny.tiny_tokenizer("gpt2"), LanguageModelConfig(name="window"))
    with pytest.raises(ConfigError, match=r"'window' \(MistralForCausalLM\) does not heed"):
        FixedGreedy(lm, 9)(prefill(lm, prefixes(2).float(), 9))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: steps are recorded there")
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_recorded_steps_say_the_same(family: str, tmp_path: Path) -> None:
    lm = tiny.load_tiny_language_model(tmp_path, family, dtype=torch.float64).to("cuda")
    prefix = prefixes(100).cuda()
    expected = greedy_captions(lm, prefix, DecodingConfig(max_new_tokens=LONGEST))
    for batch in (100, 33):
        config = DecodingConfig(max_new_tokens=LONGEST, captured=True, batch_size=batch)
        assert_same(greedy_captions(lm, prefix, config), expected)
