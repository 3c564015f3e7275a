"""Files are whole or absent."""

import json
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


def test_json_makes_its_folder(tmp_path: Path) -> None:
    path = write_json(tmp_path / "new" / "a.json", {"b": [1, None]})
    assert json.loads(path.read_text()) == {"b": [1, None]}
