"""What all tests share: checks of shape annotations, one quiet core, real data, a time budget."""

import os
import time
from pathlib import Path

import hypothesis
import jaxtyping
import pytest

# Modules that state shapes. Others check what users give them, with errors that tests look at.
_ROOT = Path(__file__).parent.parent
_CHECKED = [
    ".".join(path.relative_to(_ROOT).with_suffix("").parts)
    for path in sorted((_ROOT / "devil").rglob("*.py"))
    if "from jaxtyping import" in path.read_text()
]
jaxtyping.install_import_hook(_CHECKED, "typechecking.checked")

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# An example may take as long as a busy machine needs.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

import torch  # noqa: E402

torch.set_num_threads(min(2, torch.get_num_threads()))


_STARTED = time.monotonic()
_MINUTES = float(os.environ.get("DEVIL_TEST_MINUTES") or "inf")
_LAST = ("pipelines", "serve", "cluster")
"""Folders whose tests take the longest; within a time budget they come last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out load on a live service; with a time budget begin with what is quick."""
    if not os.environ.get("DEVIL_LIVE_TESTS"):
        left_out = pytest.mark.skip(reason="minutes of load on a service: DEVIL_LIVE_TESTS=1")
        for item in items:
            if item.get_closest_marker("live"):
                item.add_marker(left_out)
    if _MINUTES < float("inf"):
        folders = [item.path.relative_to(_ROOT / "tests").parts[0] for item in items]
        ranks = [_LAST.index(folder) + 1 if folder in _LAST else 0 for folder in folders]
        items[:] = [item for _, item in sorted(zip(ranks, items, strict=True), key=_rank)]


def _rank(pair: tuple[int, pytest.Item]) -> int:
    return pair[0]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what a slow machine has no time for, and say so, rather than be cut off."""
    if time.monotonic() - _STARTED > 60 * _MINUTES:
        pytest.skip(f"left out: the {_MINUTES:g} minutes of DEVIL_TEST_MINUTES are over")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real photos and weights; its README tells the layout."""
    folder = os.environ.get("DEVIL_REAL_DATA")
    if not folder:
        pytest.skip("needs real photos and weights: DEVIL_REAL_DATA is not set")
    return Path(folder)
