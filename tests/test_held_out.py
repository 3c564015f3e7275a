"""Held-out rows: the keys of the smallest hashes, found without holding all keys."""

import random
import tracemalloc
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import pytest
from stores import synthetic_store

from devil.held_out import Split, clean_rows, held_out_places


def by_definition(parts: Sequence[tuple[str, Sequence[str]]], count: int) -> set[str]:
    """All keys at once, sorted by hash."""
    keys = {key for _, found in parts for key in found}
    hashed = sorted(keys, key=lambda key: blake2b(key.encode(), digest_size=8).digest())
    return set(hashed[: min(count, len(keys) // 2)])


@pytest.mark.parametrize("count", [0, 1, 7, 50, 5000])
@pytest.mark.parametrize("rows", [0, 1, 2, 99, 3000])
def test_the_smallest_hashes_at_most_half(count: int, rows: int) -> None:
    keys = [f"photo {i % 2000}" for i in range(rows)]  # the last thousand come twice
    parts = [(f"part {i}", keys[i * 100 : (i + 1) * 100]) for i in range(30)]
    expected = by_definition(parts, count)
    places = held_out_places(parts, count)
    assert set(places) == expected
    named = {(part, row): key for part, found in parts for row, key in enumerate(found)}
    found = {place: key for key, rows in places.items() for place in rows}
    assert found == {place: key for place, key in named.items() if key in expected}
    random.Random(0).shuffle(parts)
    assert set(held_out_places(parts, count)) == expected


def test_memory_does_not_grow_with_the_store() -> None:
    def parts(number: int) -> Iterator[tuple[str, list[str]]]:
        for part in range(number):
            yield str(part), [f"{part}/{row}" for row in range(500)]

    def peak(number: int) -> int:
        tracemalloc.start()
        held_out_places(parts(number), 100)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(4)  # first calls allocate what stays
    assert peak(200) < 1.2 * peak(4)


def test_a_split_covers_every_row_once(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path)
    parts = store.parts()
    split = Split(store, parts, 6)
    every = clean_rows(store, tuple(store.manifest.layers), False)
    held_out = clean_rows(store, tuple(store.manifest.layers), False, split.held_out)
    training = [store.keys(part)[row] for part in parts for row in split.rows(part)]
    assert len(training) == sum(split.training.values()) == len(every.keys) - 6
    assert set(held_out.keys) == split.keys
    assert sorted(training + held_out.keys) == sorted(every.keys)
    everything = Split(store, parts, 0)
    assert sum(everything.training.values()) == len(every.keys)
    assert not everything.keys and not everything.held_out
