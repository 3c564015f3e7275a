"""Requests at once: in their order, errors raised, and no more ahead than asked for."""

import threading

import pytest

from devil.errors import StorageError
from devil.storage import as_needed, in_threads


def test_results_come_in_their_order() -> None:
    things = list(range(100))
    assert in_threads(lambda thing: -thing, things) == [-thing for thing in things]
    assert list(as_needed(lambda thing: -thing, things)) == [-thing for thing in things]
    assert list(as_needed(str, [])) == []


def test_errors_are_raised_where_results_are_taken() -> None:
    def fails(thing: int) -> int:
        if thing == 5:
            raise StorageError("out of reach")
        return thing

    found = as_needed(fails, range(9), ahead=2)
    assert [next(found) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(StorageError, match="out of reach"):
        next(found)


def test_only_so_many_results_wait() -> None:
    asked, lock = [], threading.Lock()

    def note(thing: int) -> int:
        with lock:
            asked.append(thing)
        return thing

    found = as_needed(note, range(100), ahead=3)
    assert [next(found) for _ in range(10)] == list(range(10))
    found.close()  # type: ignore[attr-defined]
    assert max(asked) < 10 + 3
