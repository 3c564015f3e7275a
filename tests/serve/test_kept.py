"""Explanations that are kept: the last so many, and none where none can be."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve.kept import STALE_SECONDS, Kept
from serve.problems import ProblemError


def test_the_oldest_go_whoever_writes(tmp_path: Path) -> None:
    kept = Kept(str(tmp_path), 3)
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda i: kept.keep(b"{}", b"%d" % i), range(40)))
    left = [path.name for path in kept.folder.iterdir()]
    assert len(left) == 3 and set(left) <= set(names)
    assert (kept.find(left[0]) / "picture").is_file()
    again = Kept(str(tmp_path), 3)  # another start takes over what is there
    new = again.keep(b"{}", b"new")
    assert new is not None and again.find(new)
    assert len(list(kept.folder.iterdir())) == 3


def test_what_another_left_half_written_goes_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(str(tmp_path), 3)
    half, young = (kept.folder / name for name in (".new-old", ".new-young"))
    half.mkdir()
    young.mkdir()
    os.utime(half, (0, 0))
    kept.keep(b"{}", b"one")
    assert half.exists()  # it is not looked for at each
    monkeypatch.setattr(kept, "_swept", kept._swept - STALE_SECONDS)
    kept.keep(b"{}", b"two")
    assert not half.exists() and young.exists()


def test_nothing_is_kept_where_nothing_shall_be(tmp_path: Path) -> None:
    kept = Kept(str(tmp_path), 0)
    assert kept.keep(b"{}", b"") is None
    assert list(kept.folder.iterdir()) == []
    with pytest.raises(ProblemError, match="no explanation is kept"):
        kept.find("0" * 32)


def test_a_state_that_cannot_be_written_loses_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(str(tmp_path), 3)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert kept.keep(b"{}", b"") is None
    assert list(kept.folder.iterdir()) == []
