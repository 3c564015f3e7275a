"""The frozen language model over families of transformers: starts, text, and freezing."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers

from devil.config import LanguageModelConfig
from devil.errors import CaptionError, LanguageModelError, QueryError
from devil.language_model import LanguageModel, load_language_model


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny.load_tiny_language_model(tmp_path_factory.mktemp("lm"), request.param)


def gpt2(folder: Path, **config: Any) -> LanguageModel:
    name = tiny.tiny_language_model(folder / "lm")
    return load_language_model(LanguageModelConfig(name=name, **config))


def test_attributes_and_start(lm: LanguageModel) -> None:
    assert lm.embedding_width == tiny.WIDTH
    assert lm.context == tiny.CONTEXT
    prefix = torch.randn(2, 3, tiny.WIDTH)
    start = lm.start(prefix)
    torch.testing.assert_close(start[:, -3:], prefix, rtol=0, atol=0)
    if lm.tokenizer.bos_token is None:
        assert lm.bos is None and start.shape[1] == 3
    else:
        row = lm.model.get_input_embeddings().weight[lm.tokenizer.bos_token_id]
        assert start.shape[1] == 4
        assert torch.equal(start[0, 0], row) and torch.equal(start[1, 0], row)


def test_some_family_has_no_bos_and_some_a_narrow_embedding(tmp_path: Path) -> None:
    assert tiny.load_tiny_language_model(tmp_path / "qwen", "qwen2").bos is None
    projected = tiny.load_tiny_language_model(tmp_path / "opt", "opt-projected")
    assert projected.model.config.hidden_size != projected.embedding_width


def test_body_and_head_are_the_whole_model(lm: LanguageModel) -> None:
    embeddings = torch.randn(2, 5, tiny.WIDTH)
    whole = lm.model(inputs_embeds=embeddings).logits
    torch.testing.assert_close(lm.logits(lm.hidden(embeddings).last_hidden_state), whole)


@pytest.mark.parametrize(
    "config",
    [
        transformers.GraniteConfig(logits_scaling=7.0),
        transformers.Gemma2Config(final_logit_softcapping=3.0, head_dim=6),
    ],
    ids=lambda c: c.model_type,
)
def test_scaled_and_capped_logits(config: Any) -> None:
    model = scaled_model(config)
    lm = LanguageModel(model, tiny.tiny_tokenizer("qwen2"), LanguageModelConfig(name="x"))
    embeddings = torch.randn(2, 5, tiny.WIDTH)
    whole = model(inputs_embeds=embeddings).logits
    torch.testing.assert_close(lm.logits(lm.hidden(embeddings).last_hidden_state), whole)


def test_unknown_scaling_is_refused() -> None:
    model = scaled_model(transformers.CohereConfig(logit_scale=0.125))
    with pytest.raises(LanguageModelError, match=r"CohereForCausalLM.*not known here"):
        LanguageModel(model, tiny.tiny_tokenizer("qwen2"), LanguageModelConfig(name="x"))


def scaled_model(config: Any) -> Any:
    sizes = dict(hidden_size=tiny.WIDTH, intermediate_size=32, num_hidden_layers=1)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, vocab_size=320)
    config.update({**sizes, **heads, "pad_token_id": 0, "initializer_range": 0.5})
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def test_fused_activation_changes_nothing(tmp_path: Path) -> None:
    lm = gpt2(tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(lm.config.name).eval()
    embeddings = torch.randn(2, 5, tiny.WIDTH)
    ours, theirs = (m(inputs_embeds=embeddings).logits for m in (lm.model, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_frozen_and_in_evaluation_mode(lm: LanguageModel) -> None:
    assert not any(p.requires_grad for p in lm.parameters())
    assert not any(m.training for m in lm.train().modules())
    with pytest.raises(RuntimeError, match="inside"):
        with lm.with_dropout(True):
            assert lm.model.training
            raise RuntimeError("inside")
    assert not any(m.training for m in lm.modules())
    with lm.with_dropout(False):
        assert not lm.model.training


def test_dropout_of_the_model_acts_only_inside_the_block(tmp_path: Path) -> None:
    lm = tiny.load_tiny_language_model(tmp_path, "opt")
    embeddings = torch.randn(1, 5, tiny.WIDTH)

    def run() -> torch.Tensor:
        return lm.hidden(embeddings).last_hidden_state

    before = run()
    with lm.with_dropout(True):
        assert not torch.equal(run(), run())
    assert torch.equal(run(), before)


def test_digest_is_of_the_weights(tmp_path: Path) -> None:
    first = tiny.load_tiny_language_model(tmp_path / "a")
    again = tiny.load_tiny_language_model(tmp_path / "b")
    other = tiny.load_tiny_language_model(tmp_path / "c", seed=1)
    assert first.digest() == again.digest() != other.digest()


def test_caption_ids(lm: LanguageModel) -> None:
    ids = lm.caption_ids("  a red\n circle ")
    assert ids == lm.caption_ids("a red circle")
    assert lm.text(ids) == "a red circle"
    assert not {lm.bos, lm.eos} & set(ids)


def test_special_tokens_inside_a_caption_are_text(lm: LanguageModel) -> None:
    assert lm.eos not in lm.caption_ids(f"a {lm.tokenizer.eos_token} red circle")
    assert lm.eos not in lm.query_ids(lm.tokenizer.eos_token)[1]


def test_manner_of_text(tmp_path: Path) -> None:
    verbatim, plain = gpt2(tmp_path), gpt2(tmp_path, text="plain")
    assert verbatim.clean(" A red  Circle. ") == "A red Circle."
    assert plain.clean(" A red  Circle . ") == "a red circle"
    assert plain.clean("no. 5") == "no. 5"
    assert plain.caption_ids("A Red circle.") == verbatim.caption_ids("a red circle")
    assert plain.query_ids("Circle", prompt="A red") == verbatim.query_ids("circle", prompt="a red")


def test_captions_that_cannot_be_used(lm: LanguageModel) -> None:
    for empty in ("", "  \n"):
        with pytest.raises(CaptionError, match="empty"):
            lm.caption_ids(empty)
    five = "line line line line line"
    count = len(lm.caption_ids(five))
    assert len(lm.caption_ids(five, limit=count)) == count
    with pytest.raises(CaptionError, match=f"has {count} tokens; at most {count - 1}"):
        lm.caption_ids(five, limit=count - 1)
    with pytest.raises(CaptionError, match=f"at most {tiny.CONTEXT - 2}"):
        lm.caption_ids("line " * tiny.CONTEXT)


@pytest.mark.parametrize("prompt", ["", "a photo of a", "the"])
@pytest.mark.parametrize("query", ["circle", "red circle", "xyzzy", "on the left side"])
def test_queries_stand_inside_a_sentence(prompt: str, query: str, lm: LanguageModel) -> None:
    before, ids = lm.query_ids(f" {query} ", prompt=f" {prompt}")
    sentence = f"{prompt or 'a'} {query}"
    whole = lm.tokenizer(sentence, add_special_tokens=False)["input_ids"]
    assert whole[-len(ids) :] == ids
    assert lm.text(ids) == query
    assert before == (whole[: -len(ids)] if prompt else [])


def test_a_query_begins_with_its_space(lm: LanguageModel) -> None:
    _, ids = lm.query_ids("circle")
    if not isinstance(lm.model, transformers.LlamaForCausalLM):  # "▁" stands before all words
        assert ids != lm.tokenizer("circle", add_special_tokens=False)["input_ids"]
        assert lm.tokenizer.decode(ids) == " circle"
    assert ids == lm.tokenizer(" circle", add_special_tokens=False)["input_ids"]


def test_queries_that_cannot_be_used(tmp_path: Path) -> None:
    lm = gpt2(tmp_path, text="plain")
    for nothing in ("", "  ", "\n", " . "):
        with pytest.raises(QueryError, match="has no tokens"):
            lm.query_ids(nothing, prompt="a photo of a")
    with pytest.raises(QueryError, match=f"at most {tiny.CONTEXT // 2} together"):
        lm.query_ids("circle " * tiny.CONTEXT)
    with pytest.raises(QueryError, match="with a prompt of"):
        lm.query_ids("circle", prompt="line " * tiny.CONTEXT)


def test_models_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(LanguageModelError, match="does not exist; give a hub id"):
        load_language_model(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(LanguageModelError, match="cannot be loaded"):
        load_language_model(str(tmp_path / "empty"))
    broken = Path(tiny.tiny_language_model(tmp_path / "broken"))
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(LanguageModelError, match="cannot be loaded"):
        load_language_model(str(broken))
    with pytest.raises(LanguageModelError, match="no-such/model"):
        load_language_model("no-such/model")  # no network under test


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    lm = gpt2(tmp_path)
    lm.tokenizer.eos_token = None
    with pytest.raises(LanguageModelError, match="no end-of-text token"):
        LanguageModel(lm.model, lm.tokenizer, lm.config)
