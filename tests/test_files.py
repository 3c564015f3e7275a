"""Files are whole or absent."""

import json
import os
from pathlib import Path

import pytest

from devil.files import write_atomically, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_atomically(tmp_path / "a.txt", b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("devil.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_follow_the_mask_which_is_never_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the whole process's: two threads that set it and set it back may leave it changed."""
    set_mask, touched = os.umask, list[int]()

    def umask(mask: int) -> int:
        touched.append(mask)
        return set_mask(mask)

    monkeypatch.setattr(os, "umask", umask)
    before = set_mask(0o022)
    try:
        for mask in (0o022, 0o027, 0o002, 0o077):
            set_mask(mask)
            path = write_atomically(tmp_path / "a.txt", b"")
            assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    finally:
        set_mask(before)
    assert not touched


def test_json_makes_its_folder(tmp_path: Path) -> None:
    path = write_json(tmp_path / "new" / "a.json", {"b": [1, None]})
    assert json.loads(path.read_text()) == {"b": [1, None]}
