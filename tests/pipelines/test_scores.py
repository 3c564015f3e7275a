"""Scoring of given captions from the command line's side: tables, files, and what is refused."""

import json
from pathlib import Path

import pytest

from devil.errors import DataError
from devil.evaluation.bert_scores import BertScoreConfig
from devil.evaluation.captioning import caption_scores
from pipelines.protocols.scores import ScoresOptions, scores

REFERENCES = {
    "1": ["A dog runs through the snow.", "the brown dog is running in the snow"],
    "2": ["Two children play football\non the grass.", "kids with a ball"],
    "3": ["a man climbs a steep rock"],
    "4": ["a boat on the calm sea"],
}
SETS = {
    "all": {"1": "a dog in the snow", "2": "children play \N{SNOWMAN} on grass", "3": ""},
    "blocks.2": {"1": "a wall", "2": "green grass", "3": "a rock\n"},
}


def options(folder: Path, **changes: object) -> ScoresOptions:
    (folder / "captions.json").write_text(json.dumps(SETS))
    rows = [f"{k}\t{' '.join(t.split())}" for k, texts in REFERENCES.items() for t in texts]
    (folder / "references.tsv").write_text("\n".join(rows))
    values: dict[str, object] = {
        "candidates": str(folder / "captions.json"),
        "references": str(folder / "references.tsv"),
        "output": str(folder / "out"),
    }
    return ScoresOptions(**(values | changes))  # type: ignore[arg-type]


def test_all_that_can_run_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    bert = BertScoreConfig(model=str(tmp_path), num_layers=2)
    metrics = ("rouge_l", "cider", "spice", "bert_score")
    results = scores(options(tmp_path, metrics=metrics, bert=bert, language=True))
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == results
    alone = caption_scores(SETS["blocks.2"], REFERENCES, metrics=("cider",)).record()
    found = results["scores"]["blocks.2"]
    assert alone == {name: found[name] for name in alone}
    assert list(results["scores"]) == ["all", "blocks.2"]
    assert list(results["controls"]) == ["shuffled", "most_frequent_reference"]
    assert results["keys_without_caption"] == {"all": 1, "blocks.2": 1}
    assert "1 keys have no caption and are not scored: ['4']" in caplog.text
    assert results["scores"]["all"]["rows"] == 3
    assert results["scores"]["all"]["cider"] > results["controls"]["shuffled"]["cider"]
    assert set(results["scores"]["all"]["missing"]) == {"spice", "bert_score"}
    assert results["language"]["blocks.2"]["words"] == 6
    printed = capsys.readouterr().out
    for text in ("blocks.2", "CIDEr", "control: shuffled", "bert_score is missing", "adjectives"):
        assert text in printed
    assert str(tmp_path / "out" / "scores.json") in printed


def test_sets_of_other_keys_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = options(tmp_path, metrics=("rouge_l",))
    sets = {"all": {"1": "a dog", "2": "children"}, "one": {"3": "a man climbs a steep rock"}}
    (tmp_path / "captions.json").write_text(json.dumps(sets))
    results = scores(request)
    printed = capsys.readouterr().out
    assert "with different keys are of different pictures" in printed
    for name in sets:
        assert results["scores"][name]["keys_hash"] in printed


def test_one_caption_has_no_shuffled_control(tmp_path: Path) -> None:
    request = options(tmp_path, metrics=("rouge_l",))
    (tmp_path / "captions.json").write_text('{"3": "a man climbs a steep rock"}')
    results = scores(request)
    assert results["scores"]["captions"]["rouge_l"] == pytest.approx(1)
    assert list(results["controls"]) == ["most_frequent_reference"]


def test_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all: 1 of 4 keys have no caption: '4'"):
        scores(options(tmp_path, strict=True))
    with pytest.raises(DataError, match="unknown metrics bleu_4; there are bleu"):
        scores(options(tmp_path, metrics=("bleu_4",)))
    stranger = options(tmp_path)
    (tmp_path / "captions.json").write_text('{"1": "a dog", "9": "a cat"}')
    with pytest.raises(DataError, match="captions: 1 of 2 captions have no reference: '9'"):
        scores(stranger)
    assert not (tmp_path / "out").exists()
