"""The read-back benchmark on a few rows: what it counts, and what it writes down."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.read_back import ReadBackOptions, parts_of_training, read_back, synthetic_store
from devil.batches import TrainingBatches


def test_an_epoch_of_a_small_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEVIL_REAL_DATA", raising=False)
    options = ReadBackOptions(
        rows=96, part_rows=48, chunk_rows=48, captions=2, steps=1, results=str(tmp_path)
    )
    # Two clocks are read: around the reading, and around the steps of training.
    ticks = iter([0.0, 4.0, 10.0, 12.0])
    with monkeypatch.context() as timed:
        timed.setattr(
            "benchmarks.read_back.time", SimpleNamespace(perf_counter=lambda: next(ticks))
        )
        found = read_back(options)
    assert json.loads((tmp_path / "read-back.json").read_text()) == found
    batch = found["batch_size"]
    assert found["rows_read_per_second"] == 96 / 4
    assert found["rows_trained_per_second"] == batch * 1 / 2
    assert found["ratio"] == round(24 / (batch / 2), 1) and found["machine"]["cores"]
    lm, texts, translator, training = parts_of_training(options)
    store = synthetic_store(tmp_path / "store", texts, options)
    batches = TrainingBatches(store, lm, training, class_tokens=translator.class_tokens)
    assert len(batches.parts) == 2 and batches.count == 96
    whole = list(batches(0, batches.epoch_steps(0)))
    assert sum(len(batch.visible) for batch in whole) == 96
    assert {len(batch.features) for batch in whole} == {2 * 4}
