"""Evaluation from the command line's side: tables, files, controls, and stores that do not fit."""

import json
import shutil
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_store

from devil.config import DecodingConfig
from devil.errors import FeatureStoreError
from devil.evaluation.stored import CONTROLS
from devil.model import DeViL
from pipelines.protocols.captioning import PEOPLE, CaptioningOptions, captioning


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    store = tiny_store(folder, shards=1, rows=12)
    model = tiny_model(folder / "frozen")
    model.backbone_digest = store.manifest.backbone_digest
    model.save_pretrained(folder / "model")
    return folder


def options(inputs: Path, output: Path, **changes: object) -> CaptioningOptions:
    values: dict[str, object] = {
        "model": str(inputs / "model"),
        "store": str(inputs / "store"),
        "train": str(inputs / "store"),
        "output": str(output),
        "decoding": DecodingConfig(max_new_tokens=6),
    }
    return CaptioningOptions(**(values | changes))  # type: ignore[arg-type]


def test_scores_beside_controls(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = captioning(options(inputs, tmp_path))
    printed = capsys.readouterr().out
    assert json.loads((tmp_path / "captioning.json").read_text()) == results
    captions = json.loads((tmp_path / "captions.json").read_text())
    model = DeViL.from_pretrained(inputs / "model", load_backbone=False)
    assert list(results["scores"]) == list(captions) == ["all", *model.layers]
    assert list(results["controls"]) == list(CONTROLS)
    # The nearest photo to each row of the training set is itself.
    assert results["controls"]["nearest_training_photo"]["bleu_4"] == pytest.approx(1, abs=1e-6)
    assert set(results["language"]) == {*captions, PEOPLE}
    for name in ("METEOR", "CIDEr", "control: mean feature", "adjectives", "bert_score is missing"):
        assert name in printed
    assert "SPICE" not in printed.split("\n\n")[1]
    again = captioning(options(inputs, tmp_path, train=None, metrics=("cider",)))
    assert list(again["controls"]) == ["shuffled", "mean_feature"]
    assert again["scores"]["all"]["cider"] == results["scores"]["all"]["cider"]


def test_a_store_of_another_backbone_is_refused(inputs: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(inputs / "store", tmp_path / "store"))
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps({**manifest, "backbone_digest": "other"}))
    with pytest.raises(FeatureStoreError, match=r"weights other.*the model's backbone"):
        captioning(options(inputs, tmp_path / "out", store=str(store)))
    assert not (tmp_path / "out").exists()
