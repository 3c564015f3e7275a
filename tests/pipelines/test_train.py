"""Training through real Ray Train: killed and resumed, two workers, finished runs."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray.train
from processes import kill_marked
from tiny import tiny_language_model, tiny_store
from training_runs import STEPS, Killer, config, metrics, options, same_weights

from devil.config import LanguageModelConfig, TrainingConfig, TranslatorConfig
from devil.errors import (
    CaptionError,
    ConfigError,
    FeatureStoreError,
    LanguageModelError,
    LockError,
    ModelFolderError,
)
from devil.features import METADATA, FeatureStore
from devil.language_model import load_language_model
from devil.lock import Lock
from devil.model import DeViL
from pipelines.train import _finished, _run_description, train
from pipelines.training_worker import check_frozen, check_parts


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny_store(folder, shards=2, rows=10)
    tiny_language_model(folder / "lm")
    return folder


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
from training_runs import options
from pipelines.train import train
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
    kill_marked(str(tmp_path))  # Ray's workers may outlive the driver's group for a moment
    assert not (tmp_path / "model").exists()
    train(options(inputs, tmp_path))
    assert same_weights(tmp_path, uninterrupted)
    assert metrics(tmp_path) == metrics(uninterrupted)


def test_two_workers_see_the_loss_of_one(inputs: Path, uninterrupted: Path, tmp_path: Path) -> None:
    train(options(inputs, tmp_path, workers=2))
    one, two = metrics(uninterrupted), metrics(tmp_path)
    assert one.keys() == two.keys()
    assert all(two[step] == pytest.approx(one[step], abs=1e-5) for step in one)


def test_a_run_goes_on_with_another_number_of_workers(
    inputs: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    for workers, step in ((1, 4), (2, 7)):
        with Killer(tmp_path, [step]), pytest.raises(ray.train.TrainingFailedError):
            train(options(inputs, tmp_path, workers=workers, max_failures=0))
        assert not (tmp_path / "model").exists()
    train(options(inputs, tmp_path, max_workers=2))
    one, more = metrics(uninterrupted), metrics(tmp_path)
    assert one.keys() == more.keys()
    assert all(more[step] == pytest.approx(one[step], abs=1e-5) for step in one)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": 0}, "workers is 0; allowed: at least 1"),
        ({"cpus_per_worker": 0}, "cpus_per_worker is 0; allowed: at least 1"),
        ({"max_failures": -2}, "max_failures is -2; allowed: at least -1"),
        ({"output": "s3://bucket/run"}, "output is s3://bucket/run; allowed: a folder"),
        ({"workers": 3, "max_workers": 2}, "max_workers is 2; allowed: 0, or at least workers, 3"),
    ],
)
def test_options_that_make_no_sense(
    values: dict[str, Any], message: str, inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(options(inputs, tmp_path), **values)


def test_two_trainings_into_one_folder(inputs: Path, tmp_path: Path) -> None:
    with (
        Lock(tmp_path / "training" / "train.lock"),
        pytest.raises(LockError, match=r"train\.lock is held by process"),
    ):
        train(options(inputs, tmp_path))
    assert not (tmp_path / "training" / "run.json").exists()


def test_more_workers_than_a_batch_has_rows_are_refused(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batches of 4 are too small for 5 workers"):
        train(options(inputs, tmp_path / "run", max_workers=5))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("select", "name", "best_of"), [("loss", "validation_loss", min), ("cider", "cider_all", max)]
)
def test_the_best_weights_and_an_early_end(
    select: str, name: str, best_of: Callable[..., int], inputs: Path, tmp_path: Path
) -> None:
    # So high a rate that scores soon go up and down.
    rates = {"learning_rate": 0.1, "final_learning_rate": 0.1}
    training = config(steps=60, select=select, patience=2, validate_every=2, **rates)
    model = train(options(inputs, tmp_path, training=training))
    scores = metrics(tmp_path, name)
    best = best_of(scores, key=scores.__getitem__)  # the first of equal ones
    assert model.summary["steps"] == best + 4 == max(scores) < 60
    assert model.summary["selected_step"] == best
    assert model.summary["scores"][name] == scores[best]
    assert f"cider_{model.layers[0]}" in model.summary["scores"]


def test_training_starts_from_another_model(
    inputs: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    training = config(steps=1, learning_rate=1e-9, final_learning_rate=0.0, warmup_steps=0)
    start = str(uninterrupted / "model")
    model = train(options(inputs, tmp_path, training=training, start_from=start))
    older = DeViL.from_pretrained(start, load_backbone=False)
    state = model.translator.state_dict()
    for name, tensor in older.translator.state_dict().items():
        assert (state[name] - tensor).abs().max() <= 2e-9, name
    description = json.loads((tmp_path / "training" / "run.json").read_text())
    assert description["start_from"] == older.version
    with pytest.raises(ModelFolderError, match=r"cannot start from .*: its translator is"):
        wider = TranslatorConfig(width=24)
        train(options(inputs, tmp_path / "other", translator=wider, start_from=start))


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


def test_a_run_goes_on_with_its_own_parts_when_the_store_has_grown(
    inputs: Path, uninterrupted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FeatureStore.open(str(shutil.copytree(inputs / "store", tmp_path / "store")))
    run = Path(shutil.copytree(uninterrupted, uninterrupted.parent / "grown"))  # names are relative
    written = json.loads((run / "training" / "run.json").read_text())
    (run / "training" / "run.json").write_text(json.dumps({**written, "store": store.root}))
    before = (run / "model" / "model.safetensors").stat().st_mtime_ns
    shutil.copy(store.parts()[0], tmp_path / "store" / "part-99999.parquet")
    train(options(inputs, run, store=store.root))  # finished: ends at once
    assert "has got 1 parts since the run" in caplog.text
    assert (run / "model" / "model.safetensors").stat().st_mtime_ns == before
    Path(store.parts()[0]).unlink()
    with pytest.raises(ConfigError, match="holds a run with another features"):
        train(options(inputs, run, store=store.root))


def test_a_worker_finds_what_changed_since_the_run_began(inputs: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(str(shutil.copytree(inputs / "store", tmp_path / "store")))
    begun = json.loads(json.dumps(store.contents()))
    shutil.copy(store.parts()[0], tmp_path / "store" / "part-99999.parquet")
    check_parts(store, begun)  # has grown only
    first = next(iter(begun))
    begun[first][1] += 1
    with pytest.raises(FeatureStoreError, match=rf"extracted anew .*{first}.*another --output"):
        check_parts(store, begun)
    lm = load_language_model(LanguageModelConfig(name=str(inputs / "lm")))
    check_frozen(lm, lm.digest())
    with pytest.raises(LanguageModelError, match=r"on this worker, .* are other; give all"):
        check_frozen(lm, "other")


def test_a_part_that_was_extracted_anew_makes_another_run(inputs: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(str(shutil.copytree(inputs / "store", tmp_path / "store")))
    first = options(inputs, tmp_path / "run", store=store.root)
    before = _run_description(first)
    part = store.parts()[0]
    table, footer = pq.read_table(part), pq.read_metadata(part).metadata[METADATA]
    with pq.ParquetWriter(part, table.schema) as writer:
        writer.write_table(table[:4])
        writer.add_key_value_metadata({METADATA: json.dumps(json.loads(footer) | {"rows": 4})})
    assert _run_description(first)["features"] != before["features"]


def test_a_run_does_not_go_on_with_another_language_model(
    inputs: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    shutil.copytree(inputs / "lm", tmp_path / "lm")
    shutil.copytree(uninterrupted / "training", tmp_path / "run" / "training")
    run = tmp_path / "run" / "training" / "run.json"
    language_model = LanguageModelConfig(name=str(tmp_path / "lm"))
    asked = options(inputs, tmp_path / "run", language_model=language_model)
    run.write_text(json.dumps(_run_description(asked) | {"language_model_digest": "other"}))
    with pytest.raises(ConfigError, match="another language_model_digest"):
        train(asked)
