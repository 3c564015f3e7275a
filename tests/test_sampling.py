"""Samples of one prefix: the reference's tokens, whatever the batch."""

from pathlib import Path

import pytest
import reference
import tiny
import torch

from devil.errors import ConfigError
from devil.language_model import LanguageModel, load_language_model
from devil.sampling import sample_captions, uniforms

LONGEST = 8


@pytest.fixture(scope="module", params=["opt", "qwen2"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("lm")
    return tiny.load_tiny_language_model(folder, request.param, dtype=torch.float64, ending=1.0)


def prefix(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, tiny.WIDTH, generator=generator, dtype=torch.float64) / 2


@pytest.mark.parametrize(("top_p", "temperature"), [(0.9, 1.0), (0.5, 0.7), (1.0, 1.5)])
def test_samples_equal_the_reference(lm: LanguageModel, top_p: float, temperature: float) -> None:
    options = dict(top_p=top_p, temperature=temperature, max_new_tokens=LONGEST, seed=3)
    found = sample_captions(lm, prefix(), 12, **options)
    chance = uniforms(12, LONGEST, seed=3)
    for caption, numbers in zip(found, chance.tolist(), strict=True):
        ids, score = reference.sample(lm, prefix(), numbers, top_p, temperature)
        assert (caption.text, caption.tokens) == (lm.text(ids), len(ids))
        assert caption.log_probability == pytest.approx(score, rel=1e-9)


def test_batches_and_memory_change_nothing(lm: LanguageModel) -> None:
    whole = sample_captions(lm, prefix(), 40, max_new_tokens=LONGEST)
    assert len({c.text for c in whole}) > 10 and len({c.tokens for c in whole}) > 1
    for options in ({"batch_size": 1}, {"batch_size": 7}, {"memory_gb": 0.001}):
        split = sample_captions(lm, prefix(), 40, max_new_tokens=LONGEST, **options)
        assert [c.text for c in split] == [c.text for c in whole]


def test_samples_share_one_prefill_until_they_part(lm: LanguageModel) -> None:
    assert lm.bytes_per_position > 0
    sizes: list[tuple[int, ...]] = []
    watch = lm.model.base_model.register_forward_pre_hook(
        lambda module, arguments, options: sizes.append(tuple(options["inputs_embeds"].shape[:2])),
        with_kwargs=True,
    )
    sample_captions(lm, prefix(), 200, max_new_tokens=3, top_p=0.3)
    watch.remove()
    assert sizes[0] == (1, 3)
    assert sizes[1][0] < sizes[2][0] < 200  # beginnings, each run once


def test_seeds_and_tokens_follow_the_distribution(lm: LanguageModel) -> None:
    one, other = (sample_captions(lm, prefix(), 3000, max_new_tokens=1, seed=s) for s in (0, 1))
    assert [c.text for c in one] != [c.text for c in other]
    probability = reference.log_probabilities(lm, prefix(), [])[-1].exp()
    likeliest = int(probability.argmax())
    share = sum(
        c.log_probability == pytest.approx(float(probability[likeliest].log())) for c in one
    ) / len(one)
    assert share == pytest.approx(float(probability[likeliest]) / 0.9, abs=0.04)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0.0}, r"top_p is 0.0; allowed: \(0, 1\]"),
        ({"temperature": 0.0}, "temperature is 0.0; allowed: above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; allowed: at least 1"),
        ({"max_new_tokens": 100}, "context of 64"),
    ],
)
def test_what_cannot_be_sampled(options: dict, message: str, lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match=message):
        sample_captions(lm, prefix(), 2, **options)
    assert sample_captions(lm, prefix(), 0) == []


@pytest.mark.real
def test_a_trained_model_says_different_things(real_data: Path) -> None:
    lm = load_language_model(str(real_data / "models" / "caption-gpt2"))
    beginning = lm.embed(torch.tensor(lm.caption_ids("a dog")))
    found = sample_captions(lm, beginning, 50, max_new_tokens=12)
    assert 10 < len({c.text for c in found})
    assert found == sample_captions(lm, beginning, 50, max_new_tokens=12)
