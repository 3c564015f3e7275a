"""The pipelines as jobs: a Ray head with its dashboard, and the real `ray job submit`."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_head import RAY, environment, ray_head
from stores import counted
from tiny import tiny_backbone_weights, tiny_language_model, tiny_shards, tiny_store

from devil.features import FeatureStore
from devil.model import DeViL

ROOT = Path(__file__).parents[2]
SECONDS = 400
"""A job of a few steps that takes longer has hung."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The dashboard of a head that is started for these tests, and stopped after them."""
    with ray_head() as head:
        yield head.dashboard


def submit(address: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Submit a command with this checkout as its working folder, and wait for its end."""
    request = ["job", "submit", "--address", address, "--working-dir", str(ROOT), "--"]
    return subprocess.run(
        [*RAY, *request, *command],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def backbone_flags(folder: Path) -> list[str]:
    """A backbone whose weights lie in `folder/backbone`, and two actors for it."""
    backbone = tiny_backbone_weights(folder / "backbone")
    return [
        *("--backbone.name", backbone.name, "--backbone.weights", backbone.weights),
        *("--backbone.layers", *backbone.layers),
        *("--backbone.image-size", str(backbone.image_size), "--extraction.draws", "2"),
        *("--pool.workers", "2", "--pool.cpus-per-worker", "1"),
    ]


def training_flags(folder: Path) -> list[str]:
    """A language model in `folder/lm`, a small translator, a few steps."""
    return [
        *("--language-model.name", tiny_language_model(folder / "lm"), "--translator.width", "16"),
        *("--translator.depth", "1", "--translator.heads", "2", "--translator.feedforward", "32"),
        *("--training.steps", "4", "--training.batch-size", "4", "--training.warmup-steps", "1"),
        *("--training.validation-rows", "2", "--training.precision", "float32"),
        *("--training.max-caption-tokens", "32", "--cpus-per-worker", "1"),
    ]


def test_extraction_then_training(address: str, tmp_path: Path) -> None:
    tiny_shards(tmp_path / "shards", shards=2, rows=5)
    shards, features, run = (str(tmp_path / name) for name in ("shards", "store", "run"))
    command = ("python", "pipelines/extract.py", shards, "--store", features)
    extraction = submit(address, *command, *backbone_flags(tmp_path))
    assert extraction.returncode == 0, extraction.stdout
    store = FeatureStore.open(features)
    assert (store.manifest.rows, store.manifest.errors) == (10, 0)
    assert len(store.parts()) == 2
    assert "10 rows, 0 errors" in extraction.stdout
    command = ("python", "pipelines/train.py", features, "--output", run)
    training = submit(address, *command, *training_flags(tmp_path))
    assert training.returncode == 0, training.stdout
    model = DeViL.from_pretrained(tmp_path / "run" / "model")
    assert model.summary["steps"] == 4 and model.backbone is not None


def without_cleaner(output: str) -> str:
    """A job's lines without those of Ray's cleaner, which complains of a slow machine."""
    cleaner = re.compile(r"(\x1b\[\d+m)?\(PlacementGroupCleaner pid=")
    return "\n".join(line for line in output.splitlines() if not cleaner.match(line))


def test_a_job_runs_what_was_uploaded(address: str) -> None:
    job = submit(address, "python", "-c", "import devil; print(devil.__file__)")
    assert job.returncode == 0, job.stdout
    assert "working_dir_files" in job.stdout


def test_a_job_that_fails_says_why_and_exits_with_one(address: str, tmp_path: Path) -> None:
    command = ("python", "pipelines/extract.py", str(tmp_path / "shards"))
    store = ("--store", str(tmp_path / "store"))
    job = submit(address, *command, *store, *backbone_flags(tmp_path))
    assert job.returncode == 1
    assert "error: no shards" in job.stdout and str(tmp_path / "shards") in job.stdout
    assert "Traceback" not in without_cleaner(job.stdout)
    assert not (tmp_path / "store").exists()


def test_a_retraining_that_has_learned_nothing_is_refused(address: str, tmp_path: Path) -> None:
    tiny_shards(tmp_path / "shards", shards=2, rows=5)
    counted(tiny_store(tmp_path / "fixed", shards=1, rows=4))
    names = {"store": "store", "held-out": "fixed/store", "models": "models"}
    folders = [f"--{option}={tmp_path / name}" for option, name in names.items()]
    command = ("python", "pipelines/retrain.py", str(tmp_path / "shards"), *folders)
    job = submit(address, *command, *backbone_flags(tmp_path), *training_flags(tmp_path))
    assert job.returncode == 1, job.stdout
    assert "is not released" in job.stdout and "Traceback" not in without_cleaner(job.stdout)
    assert FeatureStore.open(str(tmp_path / "store")).manifest.rows == 10
    (gate,) = (tmp_path / "models" / "runs").glob("*/gate.json")
    assert json.loads(gate.read_text())["passed"] is False
    assert DeViL.from_pretrained(gate.parent / "model").summary["steps"] == 4
    assert not (tmp_path / "models" / "current.json").exists()
