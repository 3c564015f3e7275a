"""Which models are served, by the text that an operator writes."""

import json
from pathlib import Path

import pytest

from devil.errors import ModelFolderError
from serve.models import served_models


def folder(path: Path, name: str) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"name": name}))
    return path


def test_models_are_called_as_they_call_themselves_or_otherwise(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "a", "one"), folder(tmp_path / "b", "two")
    assert served_models(f"{one}, deux={two}") == {"one": str(one), "deux": str(two)}
    with pytest.raises(ModelFolderError, match="two models are called 'one'"):
        served_models(f"{one},one={two}")
    with pytest.raises(ModelFolderError, match="does not exist"):
        served_models(str(tmp_path / "c"))


def test_folders_may_have_equals_signs_in_their_paths(tmp_path: Path) -> None:
    found = folder(tmp_path / "lr=0.1" / "model", "m")
    assert served_models(str(found)) == {"m": str(found)}
    assert served_models(f"mine={found}") == {"mine": str(found)}
