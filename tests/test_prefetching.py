"""Batches made ahead: the same ones, errors in their place, and no thread left behind."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from stores import synthetic_store
from test_batches import config, equal

from devil.batches import Batch, TrainingBatches
from devil.errors import FeatureStoreError
from devil.language_model import LanguageModel
from devil.prefetching import prefetched


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny.load_tiny_language_model(tmp_path_factory.mktemp("lm"))


@pytest.mark.parametrize("ahead", [1, 5])
def test_prefetched_batches_are_the_same(ahead: int, lm: LanguageModel, tmp_path: Path) -> None:
    store = synthetic_store(tmp_path)
    whole = list(TrainingBatches(store, lm, config(chunk_rows=9))(0, 23))
    ready = prefetched(TrainingBatches(store, lm, config(chunk_rows=9))(3, 23), ahead=ahead)
    assert all(equal(one, other) for one, other in zip(ready, whole[3:], strict=True))


def test_prefetching_stops_where_it_is_left(lm: LanguageModel, tmp_path: Path) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Batch]:
        for batch in TrainingBatches(synthetic_store(tmp_path), lm, config())(0, 10**6):
            taken.append(batch.step)
            yield batch

    ready = prefetched(endless(), ahead=2)
    assert [next(ready).step, next(ready).step] == [0, 1]
    ready.close()
    count = len(taken)
    assert count <= 6
    assert not [t for t in threading.enumerate() if t.name == "batches"]
    assert len(taken) == count


def test_an_error_comes_in_its_place(lm: LanguageModel, tmp_path: Path) -> None:
    def breaking() -> Iterator[Batch]:
        yield from TrainingBatches(synthetic_store(tmp_path), lm, config())(0, 2)
        raise FeatureStoreError("part 7 is gone")

    ready = prefetched(breaking())
    assert [next(ready).step, next(ready).step] == [0, 1]
    with pytest.raises(FeatureStoreError, match="part 7 is gone"):
        next(ready)
