"""Training from an older model's translator: the same weights, or a refusal that says why."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from devil.errors import ModelFolderError
from devil.model import DeViL
from devil.translator import Translator
from devil.types import LayerShape
from devil.warm_start import check_start, start_from


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DeViL:
    folder = tmp_path_factory.mktemp("model")
    model = tiny.tiny_model(folder)
    model.save_pretrained(folder / "saved")
    model.summary["folder"] = str(folder / "saved")
    return model


def wanted(model: DeViL, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "translator": model.translator.config,
        "layers": model.shapes,
        "backbone_digest": model.backbone_digest,
        "language_model_digest": model.language_model.digest(),
    }
    return values | changes


def fresh(model: DeViL) -> Translator:
    widths = {layer: shape.channels for layer, shape in model.shapes.items()}
    width = model.language_model.embedding_width
    return Translator(model.translator.config, widths, width)


def test_weights_means_and_deviations_come_along(model: DeViL) -> None:
    folder = model.summary["folder"]
    version = check_start(folder, **wanted(model))
    translator = fresh(model)
    start_from(translator, folder, version)
    state, expected = translator.state_dict(), model.translator.state_dict()
    assert version == model.version
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert any(name.startswith("feature_mean") for name in expected)


def test_another_model_is_refused(model: DeViL, tmp_path: Path) -> None:
    folder = model.summary["folder"]
    names = list(model.shapes)
    changed = {
        "translator": replace(model.translator.config, width=32),
        "layers": {name: model.shapes[name] for name in names[::-1]},
        "backbone_digest": "of another",
        "language_model_digest": "of another",
    }
    for key, value in changed.items():
        with pytest.raises(ModelFolderError, match=f"cannot start from .*: its {key} is "):
            check_start(folder, **wanted(model, **{key: value}))
    narrower = {**model.shapes, names[0]: LayerShape(3, 1, 1)}
    with pytest.raises(ModelFolderError, match="its layers is"):
        check_start(folder, **wanted(model, layers=narrower))
    with pytest.raises(ModelFolderError, match="does not exist"):
        check_start(tmp_path / "nowhere", **wanted(model))
    with pytest.raises(ModelFolderError, match=r"was to start from version abc, but .* holds"):
        start_from(fresh(model), folder, "abc")
