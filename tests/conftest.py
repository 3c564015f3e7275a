"""What all tests share: run-time checks of shape annotations, one quiet core, real data."""

import os
import pkgutil
from pathlib import Path

import jaxtyping
import pytest

# Configurations check their own types, with errors for users that tests look at.
_PACKAGE = Path(__file__).parent.parent / "devil"
_CHECKED = [f"devil.{m.name}" for m in pkgutil.iter_modules([str(_PACKAGE)]) if m.name != "config"]
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
