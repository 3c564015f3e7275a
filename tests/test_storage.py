"""Moves in one step; requests at once, in their order, and no more ahead than asked for."""

import errno
import os
import threading
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from devil.errors import StorageError
from devil.storage import as_needed, in_threads, move


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


def test_a_file_that_cannot_be_renamed_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "part.tmp").write_text("rows")
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, fails)
    with pytest.raises(OSError, match="Input/output"):
        move(LocalFileSystem(), f"{tmp_path}/part.tmp", f"{tmp_path}/part")
    assert os.listdir(tmp_path) == ["part.tmp"]


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
