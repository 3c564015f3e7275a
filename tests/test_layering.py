"""`devil` knows nothing of Ray, and importing it changes nothing."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAM = """
import importlib, logging, os, pkgutil, random, sys
import httpx, numpy, torch  # httpx draws a random number when it is imported

# Set by torch and open_clip themselves.
THIRD_PARTIES = ("TORCHINDUCTOR_CACHE_DIR", "TOKENIZERS_PARALLELISM")

def state():
    return {
        "random": random.getstate(),
        "numpy": numpy.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "handlers": list(logging.getLogger().handlers),
        "level": logging.getLogger().level,
        "environment": {k: v for k, v in os.environ.items() if k not in THIRD_PARTIES},
        "threads": torch.get_num_threads(),
        "files": sorted(os.listdir()),
    }

before = state()
import devil
names = [m.name for m in pkgutil.walk_packages(devil.__path__, "devil.")]
for name in names:
    importlib.import_module(name)
for what, value in state().items():
    assert value == before[what], what
for forbidden in ("ray", "pipelines", "serve", "pytest", "pycocoevalcap"):
    found = [m for m in sys.modules if m == forbidden or m.startswith(forbidden + ".")]
    assert not found, found[:5]
print(len(names))
"""


def test_importing_every_module(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path / "here",
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) >= 25
    assert "Warning" not in result.stderr, result.stderr[-2000:]
