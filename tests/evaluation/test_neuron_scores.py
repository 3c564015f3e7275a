"""Scores by unit, constants and people, against the plain route over `caption_scores`."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from bert_score import score as bert_score
from transformers import BertConfig, BertModel, BertTokenizerFast

from devil.errors import DataError
from devil.evaluation.bert_baseline import (
    BertBaselineOptions,
    bert_baseline,
    main,
    unrelated_pairs,
)
from devil.evaluation.bert_scores import BertScoreConfig
from devil.evaluation.captioning import caption_scores
from devil.evaluation.neuron_scores import (
    BY_UNIT,
    HUMAN,
    HUMAN_NEAREST,
    best_constants,
    leave_one_out,
    nearest_texts,
    score_neurons,
    scores_by_unit,
)

REFERENCES = {
    "a/b/low/0": ["red dots", "dots of the color red", "red spots"],
    "a/b/low/1": ["vertical lines", "straight lines", "lines in pictures"],
    "a/b/high/0": ["dogs", "brown dogs", "faces of dogs"],
    "a/b/high/1": ["water", "the sea", "blue water"],
    "a/b/high/2": ["birds", "birds in the sky"],
    "a/b/high/3": ["text"],
}
CAPTIONS = {
    "model": dict(
        zip(
            REFERENCES,
            ["red dots", "lines in pictures", "brown dogs", "the sky", "birds in the sky", "dogs"],
            strict=True,
        )
    ),
    "constant": dict.fromkeys(REFERENCES, "brown dogs"),
}
TRAIN = [["dogs", "brown dogs"], ["dogs", "faces"], ["red spots", "lines in pictures"], ["dogs"]]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> BertScoreConfig:
    """A small BERT with random weights."""
    folder = tmp_path_factory.mktemp("bert")
    texts = [t for ts in (*REFERENCES.values(), *TRAIN) for t in ts]
    words = sorted({w for t in texts for w in re.findall(r"\w+", t)})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    return BertScoreConfig(model=str(folder), num_layers=1, idf=True, lower=True)


def test_means_by_unit_are_the_corpus_scores(bert: BertScoreConfig) -> None:
    found = score_neurons(CAPTIONS, REFERENCES, TRAIN, metrics=("cider", "bert_score"), bert=bert)
    for name, texts in CAPTIONS.items():
        plain = caption_scores(texts, REFERENCES, metrics=BY_UNIT, bert=bert)
        assert found.overall[name].keys_hash == plain.keys_hash
        for metric in BY_UNIT:
            assert found.overall[name][metric] == pytest.approx(plain[metric], abs=1e-6)
            layers = sum(found.layers[x][name][metric] * n for x, n in found.units.items())
            assert layers / 6 == pytest.approx(plain[metric], abs=1e-6)
    assert found.units == {"a/b/high": 4, "a/b/low": 2}
    assert found.overall["model"]["cider"] > found.overall["constant"]["cider"]
    record = found.record()
    assert record["scores"]["model"]["bert_score"] == found.overall["model"]["bert_score"]


def test_people_are_scored_against_the_others() -> None:
    rows = leave_one_out(REFERENCES)
    assert len(rows.keys) == 4 * 3 + 2
    assert all(text not in others for text, others in zip(rows.texts, rows.others, strict=True))
    assert all(
        sorted([text, *others]) == sorted(REFERENCES[key])
        for key, text, others in zip(*rows, strict=True)
    )
    found = score_neurons(CAPTIONS, REFERENCES, TRAIN, metrics=("cider",))
    assert set(found.left_out) == {*CAPTIONS, HUMAN, HUMAN_NEAREST}
    assert found.left_out_rows == 14
    # The plain route: a made-up key for each row.
    others = {str(i): texts for i, texts in enumerate(rows.others)}
    for name, texts in (
        (HUMAN, rows.texts),
        ("model", [CAPTIONS["model"][key] for key in rows.keys]),
    ):
        said = {str(i): text for i, text in enumerate(texts)}
        plain = caption_scores(said, others, metrics=["cider"]).cider
        assert found.left_out[name]["cider"] == pytest.approx(plain)


def test_single_descriptions_are_scored_without_people(
    bert: BertScoreConfig, caplog: pytest.LogCaptureFixture
) -> None:
    single = {key: texts[:1] for key, texts in REFERENCES.items()}
    found = score_neurons(CAPTIONS, single, TRAIN, metrics=BY_UNIT, bert=bert)
    assert "no unit has two descriptions" in caplog.text
    assert found.left_out == {} and found.left_out_rows == 0
    for name, texts in CAPTIONS.items():
        plain = caption_scores(texts, single, metrics=BY_UNIT, bert=bert)
        for metric in BY_UNIT:
            assert found.overall[name][metric] == pytest.approx(plain[metric], abs=1e-6)
    assert found.overall["model"]["cider"] > found.overall["constant"]["cider"]


def test_without_an_encoder_the_reason_is_kept() -> None:
    found = score_neurons(CAPTIONS, REFERENCES, TRAIN, metrics=("cider", "bert_score"))
    assert "needs an encoder" in found.overall["model"].missing["bert_score"]
    assert set(found.left_out[HUMAN]) == {"cider"}


@pytest.mark.parametrize("metric", BY_UNIT)
def test_the_best_constant_is_the_best(metric: str, bert: BertScoreConfig) -> None:
    train = list(REFERENCES.values())
    (constant,) = best_constants(train, metrics=[metric], bert=bert).values()
    texts = sorted({t for ts in train for t in ts})
    rows = {str(i): ts for i, ts in enumerate(train)}
    means = {
        text: caption_scores(dict.fromkeys(rows, text), rows, metrics=[metric], bert=bert)[metric]
        for text in (texts if metric == "cider" else [constant, "text", "the sea", "water"])
    }
    assert means[constant] == pytest.approx(max(means.values()), abs=2e-3)
    assert max(means.values()) > min(means.values()) + 0.01


def test_nearest_texts() -> None:
    assert nearest_texts(["brown dogs and cats", "spots", "dogs"], TRAIN) == [
        "brown dogs",
        "red spots",
        "dogs",
    ]


def test_unrelated_pairs_differ() -> None:
    sentences = ["one", "two", "three", "two", " ", "four"]
    first, second = unrelated_pairs(sentences, 400, seed=0)
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert len(set(zip(first, second, strict=True))) == 4 * 3
    assert (first, second) == unrelated_pairs(sentences, 400, seed=0)
    with pytest.raises(DataError, match="1 different sentences"):
        unrelated_pairs(["a", "a "], 3, 0)


def test_baseline_sets_unrelated_sentences_to_zero(bert: BertScoreConfig, tmp_path: Path) -> None:
    sentences = [t for ts in REFERENCES.values() for t in ts]
    (tmp_path / "texts.tsv").write_text("".join(f"{t}\thttp://x\n" for t in sentences))
    options = BertBaselineOptions(
        model=bert.model,
        sentences=tmp_path / "texts.tsv",
        output=tmp_path / "new" / "baseline.csv",
        pairs=300,
    )
    path = bert_baseline(options)
    lines = path.read_text().splitlines()
    assert lines[0] == "LAYER,P,R,F" and [line[0] for line in lines[1:]] == ["0", "1", "2"]
    found, wanted = unrelated_pairs(sentences, 300, 0)
    for layer in (0, 1):
        plain = bert_score(found, wanted, model_type=bert.model, num_layers=layer, nthreads=0)
        means = [float(values.mean()) for values in plain]  # type: ignore[union-attr]
        assert [float(x) for x in lines[1 + layer].split(",")[1:]] == pytest.approx(means, abs=1e-5)
    rescaled = dataclasses.replace(
        bert, idf=False, rescale_with_baseline=True, baseline_path=str(path)
    )
    values = scores_by_unit("bert_score", {"x": found}, [[w] for w in wanted], rescaled)["x"]
    assert float(np.mean(values)) == pytest.approx(0, abs=1e-4)
    same = scores_by_unit("bert_score", {"x": found}, [[w] for w in found], rescaled)["x"]
    assert same == pytest.approx(np.ones(300), abs=1e-4)
    with pytest.raises(DataError, match="holds no sentences"):
        bert_baseline(dataclasses.replace(options, sentences=tmp_path / "none.txt"))


def test_the_command_of_a_baseline_ends_in_one_line(
    bert: BertScoreConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    (tmp_path / "empty").mkdir()
    paths = {"model": bert.model, "sentences": tmp_path / "texts.txt", "output": tmp_path / "b.csv"}

    def ended(**changes: object) -> object:
        flags = {**paths, **changes}.items()
        with pytest.raises(SystemExit) as ending:
            main([text for name, value in flags for text in (f"--{name}", str(value))])
        return ending.value.code

    for changes, message in (
        ({"model": tmp_path / "empty"}, "empty could not be loaded"),
        ({"sentences": tmp_path / "none.txt"}, "none.txt holds no sentences"),
        ({"output": tmp_path / "texts.txt" / "b.csv"}, "b.csv cannot be written"),
    ):
        code = ended(**changes)
        assert isinstance(code, str) and code.startswith("error: ")
        assert message in code and "\n" not in code
    assert ended(pairs=0) == 2
    assert "pairs is 0; allowed: at least 1" in capsys.readouterr().err
    main([text for name, value in paths.items() for text in (f"--{name}", str(value))])
    assert capsys.readouterr().out.split()[-1] == str(tmp_path / "b.csv")
