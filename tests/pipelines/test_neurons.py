"""The experiment from the command line's side: rendered units, a run gone on with, text alone."""

import json
import shutil
from pathlib import Path

import pytest
from tiny import SIDE, SMALL, tiny_backbone_weights, tiny_language_model

from devil.config import LanguageModelConfig, TrainingConfig
from devil.data.rendered_units import RenderedUnitsConfig, write_rendered_units
from devil.errors import ConfigError
from devil.model import DeViL
from pipelines.pool import PoolConfig
from pipelines.protocols.neurons import NeuronsOptions, neurons

UNITS = RenderedUnitsConfig(units=20, images=2, image_size=SIDE, scenes=130, seed=2)
SOURCE = "alexnet/imagenet"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_rendered_units(folder / "data", SOURCE, UNITS)
    tiny_language_model(folder / "lm")
    return folder


def options(inputs: Path, output: Path, **changes: object) -> NeuronsOptions:
    values: dict[str, object] = {
        "root": str(inputs / "data"),
        "experiment": "within-alexnet-imagenet",
        "output": str(output),
        "backbone": tiny_backbone_weights(inputs / "backbone"),
        "language_model": LanguageModelConfig(name=str(inputs / "lm")),
        "translator": SMALL,
        "training": TrainingConfig(
            steps=4, batch_size=4, warmup_steps=1, validate_every=2, max_caption_tokens=40
        ),
        "metrics": ("cider", "bert_score"),
        "test_share": 0.25,
        "chunk": 6,
        "pool": PoolConfig(workers=1, cpus_per_worker=1),
    }
    return NeuronsOptions(**(values | changes))  # type: ignore[arg-type]


def test_an_experiment(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = neurons(options(inputs, tmp_path))
    printed = capsys.readouterr().out
    assert json.loads((tmp_path / "neurons.json").read_text()) == results
    captions = json.loads((tmp_path / "captions.json").read_text())
    assert set(results["scores"]) == set(captions)
    assert {"model", "shuffled", "mean_feature", "best_constant_cider"} <= set(captions)
    assert results["units"] == {"train": 13, "validation": 2, "test": 5}
    assert all(len(texts) == 5 - results["test_units_hidden"] for texts in captions.values())
    assert set(results["left_out"]) - set(captions) == {
        "human",
        "training_description_nearest_to_human",
    }
    for text in ("control: shuffled", "human", "By layer", "bert_score is missing"):
        assert text in printed
    model = DeViL.from_pretrained(tmp_path / "model", load_backbone=False)
    assert model.version == results["model"]["version"]
    # Features are there: a second run, without the images, reads them and finds the same.
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "features").glob("*.safetensors")}
    assert len(files) >= 4
    again = neurons(options(inputs, tmp_path))
    assert again == results
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    other = tmp_path / "other"
    shutil.copytree(inputs / "data", other)
    with pytest.raises(ConfigError, match="another root"):
        neurons(options(inputs, tmp_path, root=str(other)))


def test_text_alone(inputs: Path, tmp_path: Path) -> None:
    root = tmp_path / "data" / SOURCE
    root.mkdir(parents=True)
    shutil.copyfile(inputs / "data" / SOURCE / "annotations.csv", root / "annotations.csv")
    asked = options(
        inputs,
        tmp_path / "out",
        root=str(tmp_path / "data"),
        experiment=SOURCE,
        text_only=True,
        metrics=("cider",),
    )
    results = neurons(asked)
    assert "model" not in results["scores"] and "model" not in results
    assert results["left_out"]["human"]["cider"] > 0
    assert results["units"]["test"] == 5
    with pytest.raises(ConfigError, match=r"test_share is 1\.5; give a share"):
        options(inputs, tmp_path / "no", test_share=1.5)
    with pytest.raises(ConfigError, match="chunk is 0; at least 1"):
        options(inputs, tmp_path / "no", chunk=0)
    with pytest.raises(ConfigError, match="there are: within-alexnet-imagenet"):
        neurons(options(inputs, tmp_path / "no", experiment="within-alexnet"))
