"""Training batches: who is visited when, by whom, with which draw, and what is held out."""

import logging
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stores
import tiny
import torch
from stores import synthetic_store

from devil.batches import Batch, TrainingBatches
from devil.config import TrainingConfig
from devil.errors import FeatureStoreError
from devil.held_out import clean_rows
from devil.language_model import LanguageModel

CAPTIONS = stores.CAPTIONS


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny.load_tiny_language_model(tmp_path_factory.mktemp("lm"))


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"batch_size": 4, "validation_rows": 0, **changes})


def rows_of(batches: Iterable[Batch], slot: str = "deep") -> list[int]:
    return [int(n) for b in batches for n in b.features[slot][:, 0].round().tolist()]


def equal(one: Batch, other: Batch) -> bool:
    return (
        (one.step, one.captions, one.global_tokens)
        == (other.step, other.captions, other.global_tokens)
        and torch.equal(one.visible, other.visible)
        and all(torch.equal(v, other.features[s]) for s, v in one.features.items())
    )


@pytest.mark.parametrize("chunk_rows", [100, 12, 1])
@pytest.mark.parametrize("size", [1, 4, 7])
def test_each_row_once_an_epoch(
    chunk_rows: int, size: int, lm: LanguageModel, tmp_path: Path
) -> None:
    """But for rests smaller than a batch: fewer than `size` in each group of parts."""
    store = synthetic_store(tmp_path, (9, 5, 8, 1, 7))
    batches = TrainingBatches(store, lm, config(batch_size=size, chunk_rows=chunk_rows))
    start = 0
    left_out: Counter[int] = Counter()
    for epoch in range(4):
        steps = batches.epoch_steps(epoch)
        visited = Counter(rows_of(batches(start, start + steps)))
        assert set(visited.values()) == {1}
        groups = 1 if chunk_rows == 100 else 30 // max(size, chunk_rows // 2)
        missed = 30 - len(visited)
        assert missed < size * groups
        assert missed == 30 % size or chunk_rows < 100
        left_out.update(set(range(30)) - set(visited))
        start += steps
    assert not left_out or max(left_out.values()) < 4  # not the same rows every time


def test_every_slot_shows_the_same_row(lm: LanguageModel, tmp_path: Path) -> None:
    batches = TrainingBatches(synthetic_store(tmp_path), lm, config(), class_tokens=True)
    assert batches.slots == ("shallow", "deep", "shallow.class", "deep.class")
    for batch in batches(0, 12):
        for slot in batches.slots:
            assert rows_of([batch], slot) == rows_of([batch], "deep")
            assert batch.features[slot].dtype == torch.float32
        assert batch.visible.shape == (4, 4) and batch.visible.any(dim=1).all()


@pytest.mark.parametrize("chunk_rows", [100, 9])
def test_order_is_a_function_of_the_step(
    chunk_rows: int, lm: LanguageModel, tmp_path: Path
) -> None:
    store = synthetic_store(tmp_path)
    whole = list(TrainingBatches(store, lm, config(chunk_rows=chunk_rows))(0, 23))
    assert [b.step for b in whole] == list(range(23))
    for start in range(0, 23, 2):
        fresh = TrainingBatches(store, lm, config(chunk_rows=chunk_rows))
        assert all(map(equal, fresh(start, 23), whole[start:]))
    assert list(TrainingBatches(store, lm, config())(5, 5)) == []


def test_seed_and_epoch_change_the_order(lm: LanguageModel, tmp_path: Path) -> None:
    store = synthetic_store(tmp_path)
    batches = TrainingBatches(store, lm, config())
    first, second = rows_of(batches(0, 5)), rows_of(batches(5, 10))
    other = rows_of(TrainingBatches(store, lm, config(seed=1))(0, 5))
    assert first != second and first != other and first != sorted(first)


@pytest.mark.parametrize("world", [2, 3])
def test_workers_share_one_batch(world: int, lm: LanguageModel, tmp_path: Path) -> None:
    store = synthetic_store(tmp_path)
    options = config(captions_per_image=2)
    alone = TrainingBatches(store, lm, options)(0, 10)
    workers = [TrainingBatches(store, lm, options, rank=r, world=world) for r in range(world)]
    for whole, *shares in zip(alone, *(w(0, 10) for w in workers), strict=True):
        for rank, share in enumerate(shares):
            assert share.global_tokens == whole.global_tokens
            assert torch.equal(share.visible, whole.visible[rank::world])
            for slot, vectors in share.features.items():
                assert torch.equal(vectors, whole.features[slot][rank::world])
            pairs = [whole.captions[i : i + 2] for i in range(0, 8, 2)][rank::world]
            assert share.captions == [ids for pair in pairs for ids in pair]


@pytest.mark.parametrize("chunk_rows", [100, 9])
def test_keys_of_a_step(chunk_rows: int, lm: LanguageModel, tmp_path: Path) -> None:
    store = synthetic_store(tmp_path)
    options = config(chunk_rows=chunk_rows, validation_rows=3)
    share = TrainingBatches(store, lm, options, rank=1, world=3)
    for batch, whole in zip(share(0, 14), share.whole()(0, 14), strict=True):
        assert share.keys(batch.step) == [f"row{n}" for n in rows_of([batch])]
        assert share.whole().keys(batch.step) == [f"row{n}" for n in rows_of([whole])]
        assert len(whole.captions) == 4 > len(batch.captions)


def test_more_workers_than_rows_are_refused(lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(FeatureStoreError, match="too few for 5 workers"):
        TrainingBatches(synthetic_store(tmp_path), lm, config(), world=5)


def test_held_out_rows_are_never_trained_on(lm: LanguageModel, tmp_path: Path) -> None:
    batches = TrainingBatches(synthetic_store(tmp_path / "a"), lm, config(validation_rows=6))
    held_out = batches.held_out()
    assert len(held_out.keys) == 6 == len(set(held_out.keys))
    numbers = {int(key.removeprefix("row")) for key in held_out.keys}
    assert not numbers & set(rows_of(batches(0, 40)))
    assert held_out.references == [list(CAPTIONS)] * 6
    found = held_out.features["deep"]
    assert found[:, 0].tolist() == [float(k.removeprefix("row")) for k in held_out.keys]
    assert found[:, 1].tolist() == [0.0] * 6  # the clean mean, no draw
    # The same rows, however the store is cut into parts and whatever the seed.
    other = synthetic_store(tmp_path / "b", (20, 2))
    again = TrainingBatches(other, lm, config(validation_rows=6, seed=9))
    assert again.split.keys == batches.split.keys
    assert len(TrainingBatches(other, lm, config(validation_rows=500)).split.keys) == 11


def test_draws_are_picked_evenly_and_never_the_clean_mean(
    lm: LanguageModel, tmp_path: Path
) -> None:
    batches = TrainingBatches(synthetic_store(tmp_path), lm, config())
    seen = Counter(int(d) for b in batches(0, 150) for d in b.features["deep"][:, 1])
    assert set(seen) == {1, 2, 3}
    assert all(150 < count < 250 for count in seen.values()), seen


def test_without_draws_the_clean_mean_is_fed(lm: LanguageModel, tmp_path: Path) -> None:
    batches = TrainingBatches(synthetic_store(tmp_path, draws=0), lm, config())
    assert {float(d) for b in batches(0, 5) for d in b.features["deep"][:, 1]} == {0.0}


def test_without_feature_dropout_clean_means_are_fed(lm: LanguageModel, tmp_path: Path) -> None:
    pooled = synthetic_store(tmp_path / "pooled")
    found = TrainingBatches(pooled, lm, config(feature_dropout=False))(0, 5)
    assert {float(draw) for b in found for draw in b.features["deep"][:, 1]} == {0.0}
    maps = synthetic_store(tmp_path / "maps", mode="maps")
    batches = TrainingBatches(maps, lm, config(feature_dropout=False))
    clean = {
        tuple(row.tolist()) for row in clean_rows(maps, batches.layers, False).features["deep"]
    }
    assert {tuple(row.tolist()) for b in batches(0, 40) for row in b.features["deep"]} == clean


def test_maps_are_drawn_afresh(lm: LanguageModel, tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, mode="maps")
    batches = TrainingBatches(store, lm, config())
    clean = clean_rows(store, batches.layers, False).features["deep"]
    vectors: dict[int, set[tuple[float, ...]]] = {}
    for batch in batches(0, 40):
        for row in batch.features["deep"]:
            vectors.setdefault(int(row[0].round()), set()).add(tuple(row.tolist()))
    assert set(vectors) == set(range(22))
    # A 2 × 2 map has 15 means of some of its locations; eight visits see several of them.
    assert all(2 <= len(found) <= 15 for found in vectors.values())
    spread = torch.stack([torch.tensor([*v]).mean(dim=0) for _, v in sorted(vectors.items())])
    assert (spread - clean).abs().mean() < 0.5
    assert equal(next(batches(3, 4)), next(TrainingBatches(store, lm, config())(3, 4)))


def test_statistics_are_of_clean_training_rows(lm: LanguageModel, tmp_path: Path) -> None:
    store = synthetic_store(tmp_path)
    batches = TrainingBatches(store, lm, config(validation_rows=5), class_tokens=True)
    every = clean_rows(store, batches.layers, True)
    training = [i for i, key in enumerate(every.keys) if key not in batches.split.keys]
    for slot, (mean, std) in batches.statistics().items():
        values = every.features[slot][training].double().numpy()
        np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(std, values.std(axis=0, ddof=1), rtol=1e-5, atol=1e-6)


def test_captions_in_turn(lm: LanguageModel, tmp_path: Path) -> None:
    store = synthetic_store(tmp_path)
    ids = [lm.caption_ids(text) for text in CAPTIONS]
    seen: Counter[int] = Counter()
    for batch in TrainingBatches(store, lm, config())(0, 60):
        assert batch.global_tokens == sum(len(c) + 1 for c in batch.captions)
        seen.update(ids.index(caption) for caption in batch.captions)
    assert min(seen.values()) > 80 and sum(seen.values()) == 240
    for batch in TrainingBatches(store, lm, config(captions_per_image=3))(0, 4):
        for row in range(4):
            first, second, third = batch.captions[3 * row : 3 * row + 3]
            assert {tuple(first), tuple(second)} == set(map(tuple, ids))
            assert third in ids


def test_long_captions_are_left_out_and_counted(
    lm: LanguageModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short, long = "a red circle", "a red circle " * 9
    limit = len(lm.caption_ids(short))
    store = synthetic_store(tmp_path / "a", captions=[short, long])
    options = config(max_caption_tokens=limit, captions_per_image=2, chunk_rows=9)
    batches = TrainingBatches(store, lm, options)
    with caplog.at_level(logging.WARNING):
        seen = [ids for b in batches(0, 30) for ids in b.captions]
    assert seen == [lm.caption_ids(short)] * len(seen)
    assert sum(batches._chunk.left_out.values()) == 22  # each once, however often it was read
    assert "captions left out" in caplog.text and f"at most {limit}" in caplog.text
    nothing = synthetic_store(tmp_path / "b", captions=[long])
    (batch,) = TrainingBatches(nothing, lm, options)(0, 1)
    assert batch.captions == [[]] * 8
    assert batch.global_tokens == 1


def test_stores_that_do_not_serve(lm: LanguageModel, tmp_path: Path) -> None:
    store = synthetic_store(tmp_path / "a")
    with pytest.raises(FeatureStoreError, match=r"no features for \['layer9'\]; it has: shallow"):
        TrainingBatches(store, lm, config(), layers=["deep", "layer9"])
    assert TrainingBatches(store, lm, config(), layers=["deep"]).slots == ("deep",)
    with pytest.raises(FeatureStoreError, match="no rows to train on: 1 parts"):
        TrainingBatches(synthetic_store(tmp_path / "b", (0,)), lm, config())


def test_a_part_that_is_replaced_while_it_is_trained_on(lm: LanguageModel, tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, [9, 5])
    batches = TrainingBatches(store, lm, config())
    shutil.copy(store.parts()[1], store.parts()[0])
    with pytest.raises(FeatureStoreError, match=r"has 5 rows, and had 9 when the training began"):
        list(batches(0, 9))


def test_a_store_that_grows_does_not_change_a_run(lm: LanguageModel, tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, [9, 5])
    names = [part.rsplit("/", 1)[-1] for part in store.parts()]
    before = list(TrainingBatches(store, lm, config(validation_rows=3))(0, 9))
    shutil.copy(store.parts()[0], tmp_path / "part-99999.parquet")
    after = TrainingBatches(store, lm, config(validation_rows=3), parts=names)
    assert all(map(equal, before, after(0, 9)))
    more = TrainingBatches(store, lm, config(validation_rows=3))
    assert not all(map(equal, before, more(0, 9)))
