"""Photos in a folder: captions in COCO's JSON or in a table, and photos that are not there."""

import errno
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from devil.config import SourceConfig
from devil.data.photo_rows import AT_ONCE
from devil.data.sample import Failure, Sample
from devil.data.source import Source, open_source
from devil.errors import DataError, StorageError

PAIRS = [
    ("b[1].jpg", "a dog"),
    ("a.jpg", 'a "cat", sat'),
    ("b[1].jpg", "it\u2028runs"),
    ("c.jpg", ""),
]
WANTED = {"b[1].jpg": ("a dog", "it\u2028runs"), "a.jpg": ('a "cat", sat',), "c.jpg": ()}


def photos(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in WANTED:
        (folder / name).write_bytes(b"photo " + name.encode())


def rows(source: Source) -> list[Sample | Failure]:
    return [row for shard in source.shards() for row in source.read(shard)]


def document() -> dict[str, Any]:
    ids = {name: 7 - i for i, name in enumerate(WANTED)}
    return {
        "images": [{"id": ids[name], "file_name": name} for name in WANTED],
        "annotations": [{"image_id": ids[name], "caption": text} for name, text in PAIRS],
    }


def write(path: Path) -> Path:
    quoted = [(n, '"' + t.replace('"', '""') + '"') for n, t in PAIRS]
    contents = {
        ".csv": "\ufefffile_name,caption\r\n" + "".join(f"{n},{t}\r\n" for n, t in quoted),
        ".tsv": "image\ttext\n" + "".join(f"{n}\t{t}\n" for n, t in PAIRS),
        ".jsonl": "\n".join(
            json.dumps({"file": n, "captions": t}, ensure_ascii=False) for n, t in WANTED.items()
        ),
        ".json": json.dumps(document()),
    }
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"file": [n for n, _ in PAIRS], "x": [t for _, t in PAIRS]}), path)
    else:
        path.write_bytes(contents[path.suffix].encode())
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".json"])
def test_photos_come_with_all_their_captions(tmp_path: Path, suffix: str) -> None:
    photos(tmp_path / "photos")
    path = write(tmp_path / f"captions{suffix}")
    config = SourceConfig(
        format="coco" if suffix == ".json" else "table",
        images=str(tmp_path / "photos"),
        rows_per_shard=2,
        caption_column="x" if suffix == ".parquet" else None,
    )
    source = open_source(str(path), config)
    shards = source.shards()
    assert [(s.name, s.rows) for s in shards] == [("captions-00000", 2), ("captions-00001", 1)]
    found = rows(open_source(str(path), config))
    assert [row.key for row in found] == list(WANTED)
    for row in found:
        assert isinstance(row, Sample)
        assert row.captions == WANTED[row.key]
        assert row.image == b"photo " + row.key.encode()
        assert row.source == str(tmp_path / "photos" / row.key)


def test_photos_beside_the_table_and_those_that_are_not_there(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "sub").mkdir()
    files = ["a.jpg", "gone.jpg", "sub", "../a.jpg", "/etc/passwd", "a.jpg/b", "\ud800", "x" * 300]
    lines = [json.dumps({"file": file, "caption": "x"}) for file in files]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    found = rows(open_source(str(tmp_path / "t.jsonl")))
    assert len(found) == len(files)
    assert isinstance(found[0], Sample) and found[0].image == b"photo a.jpg"
    for row, file in zip(found[1:], files[1:], strict=True):
        assert isinstance(row, Failure), row
        assert row.stage == "fetch" and row.key.startswith(file[:1].replace("\ud800", "\\ud800"))
        "".join(row).encode()  # can be written
    assert found[1].error == "FileNotFoundError"
    assert [row.error for row in found[3:5]] == ["DataError"] * 2


def test_a_photo_that_cannot_be_opened_is_a_failure_beside_one_that_can(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "t.csv").write_text("file,caption\nloop.jpg,x\na.jpg,x\ngone.jpg,x\n")
    loop, photo, gone = rows(open_source(str(tmp_path / "t.csv")))
    assert isinstance(loop, Failure) and (loop.stage, loop.error) == ("fetch", "OSError")
    assert isinstance(photo, Sample) and isinstance(gone, Failure)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(StorageError, match=r"loop\.jpg cannot be used"):
        rows(open_source(str(tmp_path / "t.csv")))


def opened_then_not(folder: Path, *, closed: int) -> str:
    """A table of `AT_ONCE` photos that can be opened, and some behind them that cannot."""
    names = [f"{i}.jpg" for i in range(AT_ONCE + closed)]
    for i, name in enumerate(names):
        if i < AT_ONCE:
            (folder / name).write_bytes(b"photo")
        else:
            (folder / name).symlink_to(name)
    (folder / "t.csv").write_text("file,caption\n" + "".join(f"{name},x\n" for name in names))
    return str(folder / "t.csv")


def test_a_last_photo_that_cannot_be_opened_is_a_failure(tmp_path: Path) -> None:
    *opened, loop = rows(open_source(opened_then_not(tmp_path, closed=1)))
    assert len(opened) == AT_ONCE and all(isinstance(row, Sample) for row in opened)
    assert isinstance(loop, Failure) and loop.stage == "fetch"


def test_a_folder_that_closes_on_the_way_is_no_failure_of_each_photo(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot be used"):
        rows(open_source(opened_then_not(tmp_path, closed=AT_ONCE)))


@pytest.mark.parametrize(
    ("error", "of_all"),
    [
        (PermissionError(errno.EACCES, "403"), False),
        (OSError(errno.EIO, "a bad block"), False),
        (OSError("Forbidden: a.jpg"), False),
        (OSError(errno.ESTALE, "stale"), True),
        (OSError(errno.EBUSY, "slow down"), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError("no answer"), True),
    ],
)
def test_errors_of_one_photo_and_of_all(
    error: OSError, of_all: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path)
    (tmp_path / "t.csv").write_text("file,caption\nc.jpg,x\na.jpg,x\n")
    real = LocalFileSystem.cat_file

    def fails(fs: Any, path: str, *arguments: Any, **options: Any) -> Any:
        if path.endswith("a.jpg"):
            raise error
        return real(fs, path, *arguments, **options)

    source = open_source(str(tmp_path / "t.csv"))
    (shard,) = source.shards()
    monkeypatch.setattr(LocalFileSystem, "cat_file", fails)
    found = source.read(shard)
    assert isinstance(next(found), Sample)
    if of_all:
        with pytest.raises(StorageError, match=r"a\.jpg cannot be used"):
            next(found)
    else:
        failed = next(found)
        assert isinstance(failed, Failure) and failed.stage == "fetch"


def test_identity_follows_the_rows(tmp_path: Path) -> None:
    photos(tmp_path)
    path, config = tmp_path / "t.csv", SourceConfig(rows_per_shard=1)
    path.write_text("file,caption\na.jpg,one\nc.jpg,two\n")
    shards = open_source(str(path), config).shards()
    before = [open_source(str(path), config).identity(shard) for shard in shards]
    assert before[0] != before[1]
    path.write_text("file,caption\na.jpg,one\nc.jpg,other\n")
    after = [open_source(str(path), config).identity(shard) for shard in shards]
    assert after[0] == before[0] and after[1] != before[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "is empty"),
        ("t.csv", "file,caption\n", "is empty"),
        ("t.csv", "file,words\na.jpg,x\n", "no column captions or .* but file, words"),
        ("t.csv", "photo,caption\na.jpg,x\n", "no column file_name or .*--source.image-column"),
        ("t.csv", "file,caption\na.jpg,x,y\n", "line 2 has 3 cells, the header file, caption"),
        ("t.csv", 'file,caption\na.jpg,"x\n', "is broken"),
        ("t.csv", "file,caption\n,x\n", "row 2: its file is ''"),
        ("t.csv", b"file,caption\na.jpg,\xff\n", "is broken .UnicodeDecodeError"),
        ("t.jsonl", '{"file": "a.jpg", "caption": "x"}\n{"caption": "y"}', "row 2: its file is"),
        ("t.jsonl", "[1]", "line 1 is no object"),
        ("t.jsonl", "{", "is broken"),
        ("t.json", "{", "is not JSON"),
        ("t.json", "[]", "is malformed"),
        ("t.json", '{"images": [], "annotations": []}', "names no photo"),
        ("t.json", '{"images": [], "annotations": [{"image_id": 4, "caption": ""}]}', "image 4"),
        ("t.json", '{"images": [{"id": 1}], "annotations": []}', "is malformed .*file_name"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        open_source(str(path)).shards()


def test_missing_tables(tmp_path: Path) -> None:
    for name in ("t.csv", "t.json"):
        with pytest.raises(DataError, match="does not exist"):
            open_source(str(tmp_path / name)).shards()
    (tmp_path / "t.txt").write_text("x")
    with pytest.raises(DataError, match=r"is no table; allowed: \.csv"):
        open_source(str(tmp_path / "t.txt"), SourceConfig(format="table")).shards()
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is broken"):
        open_source(str(tmp_path / "t.parquet"), SourceConfig(format="table")).shards()
