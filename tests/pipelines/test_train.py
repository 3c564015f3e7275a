"""Training through real Ray Train: killed and resumed, two workers, finished runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import tiny_language_model, tiny_store

from devil.config import LanguageModelConfig, TrainingConfig, TranslatorConfig
from devil.errors import CaptionError, ConfigError, FeatureStoreError
from devil.model import DeViL
from pipelines.train import TrainOptions, _finished, _run_description, train

STEPS = 12


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny_store(folder, shards=2, rows=10)
    tiny_language_model(folder / "lm")
    return folder


def options(inputs: Path, output: Path, **changes: object) -> TrainOptions:
    values: dict[str, object] = {
        "store": str(inputs / "store"),
        "output": str(output),
        "language_model": LanguageModelConfig(name=str(inputs / "lm")),
        "translator": TranslatorConfig(width=16, depth=1, heads=2, feedforward=32, prefix_length=3),
        "training": TrainingConfig(
            steps=STEPS,
            batch_size=4,
            learning_rate=1e-3,
            warmup_steps=2,
            precision="float32",
            max_caption_tokens=32,
            validation_rows=4,
            validate_every=STEPS,
            checkpoint_every=3,
            log_every=1,
        ),
        "cpus_per_worker": 1,
    }
    return TrainOptions(**(values | changes))  # type: ignore[arg-type]


def metrics(output: Path, name: str = "loss") -> dict[int, float]:
    lines = (output / "training" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["step"]: row[name] for row in rows if name in row}


@pytest.fixture(scope="module")
def uninterrupted(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    train(options(inputs, output))
    return output


def test_training_leaves_a_model_metrics_and_scores(uninterrupted: Path) -> None:
    model = DeViL.from_pretrained(uninterrupted / "model")
    assert model.backbone is not None and model.version != "untrained"
    scores = model.summary["scores"]
    assert {"validation_loss", "cider_all", "cider_shuffled"} <= set(scores)
    assert sorted(metrics(uninterrupted)) == list(range(1, STEPS + 1))
    assert list((uninterrupted / "training" / "tensorboard").glob("events*"))
    assert "cider_all" in (uninterrupted / "model" / "README.md").read_text()
    assert not list(uninterrupted.rglob("*.pkl"))


def test_a_finished_run_ends_at_once_and_another_one_is_refused(
    inputs: Path, uninterrupted: Path
) -> None:
    before = (uninterrupted / "model" / "model.safetensors").stat().st_mtime_ns
    lines = (uninterrupted / "training" / "metrics.jsonl").read_text()
    train(options(inputs, uninterrupted))
    assert (uninterrupted / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert (uninterrupted / "training" / "metrics.jsonl").read_text() == lines
    with pytest.raises(ConfigError, match="another translator"):
        train(options(inputs, uninterrupted, translator=TranslatorConfig(width=24)))


KILLED = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_train import options, train
from dataclasses import replace
train(options(Path({inputs!r}), Path({output!r})))
"""


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(
    inputs: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    here = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    script = KILLED.format(path=here, inputs=str(inputs), output=str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(here)},
    )
    metrics_file = tmp_path / "training" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics_file.is_file() and len(metrics_file.read_text().splitlines()) >= 5):
        assert process.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _kill_orphans(str(tmp_path))
    assert not (tmp_path / "model").exists()
    train(options(inputs, tmp_path))
    one = safetensors.torch.load_file(uninterrupted / "model" / "model.safetensors")
    two = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert metrics(tmp_path) == metrics(uninterrupted)


def _kill_orphans(mark: str) -> None:
    """Ray's worker processes may outlive the killed driver's group for a moment."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark in entry.read_text():
                os.kill(int(entry.parent.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue


def test_two_workers_see_the_loss_of_one(inputs: Path, uninterrupted: Path, tmp_path: Path) -> None:
    train(options(inputs, tmp_path, workers=2))
    one, two = metrics(uninterrupted), metrics(tmp_path)
    assert one.keys() == two.keys()
    assert all(two[step] == pytest.approx(one[step], abs=1e-5) for step in one)


def test_a_store_without_the_layer_is_refused(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(FeatureStoreError, match="is no feature store"):
        train(options(inputs, tmp_path, store=str(tmp_path)))
    with pytest.raises(FeatureStoreError, match="no features for"):
        train(options(inputs, tmp_path / "run", layers=("layer9",)))
    assert not (tmp_path / "run" / "training" / "run.json").exists()


def test_captions_that_are_all_too_long_are_refused(inputs: Path, tmp_path: Path) -> None:
    training = TrainingConfig(steps=STEPS, batch_size=4, max_caption_tokens=1)
    with pytest.raises(CaptionError, match="max_caption_tokens = 1 tokens; raise that"):
        train(options(inputs, tmp_path / "run", training=training))
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_other_features(inputs: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(inputs / "store", tmp_path / "store"))
    first = options(inputs, tmp_path / "run", store=str(store))
    assert not _finished(tmp_path / "run", _run_description(first))  # claims the folder
    assert not _finished(tmp_path / "run", _run_description(first))
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps({**manifest, "backbone_digest": "other"}))
    with pytest.raises(ConfigError, match="holds a run with another features"):
        train(first)
