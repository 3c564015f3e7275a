"""What ends a training, and what does not: broken features, and workers that are killed."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import synthetic_store
from tiny import load_tiny_language_model, tiny_language_model, tiny_store
from training_runs import Killer, config, metrics, options, same_weights

from devil.batches import TrainingBatches
from devil.errors import FeatureStoreError, LossError, StorageError
from devil.features import METADATA, FeatureStore, tensor_column
from pipelines.train import train
from pipelines.training_failures import EndAtOnce, save_broken_batch


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny_store(folder, shards=2, rows=10)
    tiny_language_model(folder / "lm")
    return folder


def break_draws(store: FeatureStore, layers: list[str], row: int) -> str:
    """Put NaN into the draws of a row, not into its clean mean; returns its key."""
    part = store.parts()[-1]
    table, footer = pq.read_table(part), pq.read_metadata(part).metadata
    for name in (f"feature.{layer}" for layer in layers):
        values = tensor_column(table, name).copy()
        values[row, 1:] = np.nan
        index = table.schema.get_field_index(name)
        column = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
        table = table.set_column(index, table.schema.field(index), column)
    with pq.ParquetWriter(part, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({METADATA: footer[METADATA]})
    return table.column("key")[row].as_py()


def test_the_broken_batch_is_written_down(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path / "store")
    key = break_draws(store, ["deep"], 2)
    lm = load_tiny_language_model(tmp_path / "lm")
    share = TrainingBatches(store, lm, config(validation_rows=0), rank=1, world=2)
    step = next(step for step in range(20) if key in share.whole().keys(step))
    problem = LossError("the loss is nan.", float("nan"))
    error = save_broken_batch(tmp_path, step, 1e-3, share, problem)
    found = json.loads((tmp_path / "broken_batch.json").read_text())
    assert found == {
        "step": step,
        "loss": "nan",
        "learning_rate": 1e-3,
        "keys": share.whole().keys(step),
        "features_not_finite": {"shallow": [], "deep": [key]},
    }
    assert len(found["keys"]) == 4 and "broken_batch.json" in str(error)


def test_what_is_tried_again() -> None:
    callback = EndAtOnce()
    callback.after_exception(None, {0: RuntimeError("a worker"), 1: StorageError("a network")})
    for error in (LossError("nan"), FeatureStoreError("a broken part")):
        with pytest.raises(type(error), match=str(error)):
            callback.after_exception(None, {0: RuntimeError("its peer"), 1: error})


def test_a_broken_part_ends_training_at_once(inputs: Path, tmp_path: Path) -> None:
    store = tiny_store(tmp_path, shards=2, rows=10)
    part = Path(store.parts()[1])
    columns = pq.read_metadata(part).row_group(0)
    names = [columns.column(i).path_in_schema for i in range(columns.num_columns)]
    features = columns.column(next(i for i, n in enumerate(names) if n.startswith("feature.")))
    content = bytearray(part.read_bytes())
    begin = features.dictionary_page_offset or features.data_page_offset
    content[begin : begin + features.total_compressed_size] = bytes(features.total_compressed_size)
    part.write_bytes(content)
    with pytest.raises(FeatureStoreError, match="is no whole part of a feature store"):
        train(options(inputs, tmp_path / "run", store=store.root, max_failures=-1))


def test_a_loss_that_is_not_finite_ends_training_at_once(inputs: Path, tmp_path: Path) -> None:
    store = tiny_store(tmp_path, shards=2, rows=10)
    key = break_draws(store, list(store.manifest.layers), 3)
    broken = options(inputs, tmp_path / "run", store=store.root, max_failures=-1)
    with pytest.raises(LossError, match=r"loss at step \d+ is nan.* keys are in .*broken_batch"):
        train(broken)
    found = json.loads((tmp_path / "run" / "training" / "broken_batch.json").read_text())
    assert key in found["keys"]
    assert set(map(tuple, found["features_not_finite"].values())) == {(key,)}


def test_ten_kills_end_in_the_same_weights(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with everything that a checkpoint holds: also dropout and the best weights."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    steps = 120
    training = config(
        steps=steps, lm_dropout=True, select="loss", validate_every=25, checkpoint_every=4
    )
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    expected = train(options(inputs, alone, training=training))
    points = random.Random(0).sample(range(1, steps - 20), 10)
    with Killer(killed, points) as killer:
        found = train(options(inputs, killed, training=training, max_failures=10))
    assert len(killer.killed) == 10
    assert same_weights(alone, killed)
    assert found.summary["selected_step"] == expected.summary["selected_step"]
    for name in ("loss", "validation_loss"):
        assert metrics(killed, name) == metrics(alone, name)
