"""The control with a random backbone: which models are taken for it, and which are refused."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_model

from devil.errors import ConfigError, ModelFolderError
from devil.evaluation.random_control import control_note, load_random_control, measured


def test_only_a_model_of_the_same_backbone_without_training(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "own")
    model.save_pretrained(tmp_path / "model")
    control = tiny_model(tmp_path / "other", untrained=True)
    control.save_pretrained(tmp_path / "control")
    assert load_random_control("", model) is None
    found = load_random_control(str(tmp_path / "control"), model)
    assert found is not None and found.version == control.version
    with pytest.raises(ConfigError, match=r"model explains .* --backbone\.weights random"):
        load_random_control(str(tmp_path / "model"), model)
    with pytest.raises(ModelFolderError):
        load_random_control(str(tmp_path / "nowhere"), model)
    model.backbone_config = replace(model.backbone_config, name="timm:another")
    with pytest.raises(ConfigError, match=r"not timm:another with layer2, .*own backbone"):
        load_random_control(str(tmp_path / "control"), model)


def test_a_layer_that_the_control_lacks(tmp_path: Path) -> None:
    control = tiny_model(tmp_path / "other", untrained=True)
    control.save_pretrained(tmp_path / "control")
    model = tiny_model(tmp_path / "own", untrained=True)
    model.shapes = {**model.shapes, "layer4": model.shapes["layer3"]}
    with pytest.raises(ConfigError, match="at the same input size"):
        load_random_control(str(tmp_path / "control"), model)


def test_a_layer_more_than_the_model_has(tmp_path: Path) -> None:
    control = tiny_model(tmp_path / "other", untrained=True)
    control.save_pretrained(tmp_path / "control")
    model = tiny_model(tmp_path / "own", untrained=True)
    model.translator.layers = model.layers[1:]
    with pytest.raises(ConfigError, match="train it for the model's own backbone and layers"):
        load_random_control(str(tmp_path / "control"), model)


def test_how_long_both_were_trained_is_told(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "own")
    control = tiny_model(tmp_path / "other", untrained=True)
    assert control_note(measured(model, None)) == ""
    model.summary = {"captions_seen": 512_000}
    found = measured(model, control)
    assert found["random_control"]["version"] == control.version
    assert control_note(found) == (
        "; the random backbone's translator saw an unknown number of captions, the model's 512,000"
    )
