"""What all tests share: run-time checks of shape annotations, one quiet core, real data."""

import os
from pathlib import Path

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

import torch  # noqa: E402

torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real photos and weights; its README tells the layout."""
    folder = os.environ.get("DEVIL_REAL_DATA")
    if not folder:
        pytest.skip("needs real photos and weights: DEVIL_REAL_DATA is not set")
    return Path(folder)
