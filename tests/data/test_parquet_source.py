"""Parquet of pictures: every usual layout, cut by row groups, and damaged in every way."""

from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile

from devil.config import SourceConfig
from devil.data.sample import Failure, Sample
from devil.data.source import open_source
from devil.errors import DataError, StorageError

ROWS = [
    {"key": "a", "image": b"\xff\xd8 1", "caption": " a dog "},
    {"key": "\u72ac/\u00e9", "image": b"\xff\xd8 2", "caption": "a cat"},
    {"key": "c", "image": None, "caption": None},
]


def write(path: Path, rows: list[dict[str, Any]], **options: Any) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return str(path)


def read(address: str, **options: Any) -> list[Sample | Failure]:
    source = open_source(address, SourceConfig(**options))
    return [row for shard in source.shards() for row in source.read(shard)]


def test_rows_with_and_without_pictures(tmp_path: Path) -> None:
    path = write(tmp_path / "some.parquet", ROWS)
    assert read(path) == [
        Sample(key="a", source=path, image=b"\xff\xd8 1", captions=("a dog",)),
        Sample(key="\u72ac/\u00e9", source=path, image=b"\xff\xd8 2", captions=("a cat",)),
        Sample(key="c", source=path, image=None, captions=()),
    ]


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"image_key": "k", "jpg": b"x", "captions": ["one", "", "two"]}, {}),
        ({"__key__": "k", "image": {"bytes": b"x", "path": None}, "text": "one"}, {}),
        ({"key": "other", "id": "k", "image": b"x", "text": "one"}, {"key_column": "id"}),
        ({"key": "k", "a": b"x", "b": "one"}, {"image_column": "a", "caption_column": "b"}),
    ],
)
def test_layouts(tmp_path: Path, row: dict[str, Any], options: dict[str, str]) -> None:
    (sample,) = read(write(tmp_path / "p.parquet", [row]), **options)
    assert isinstance(sample, Sample)
    assert (sample.key, sample.image) == ("k", b"x")
    assert sample.captions == (("one", "two") if "captions" in row else ("one",))


def test_big_files_are_cut_by_row_groups(tmp_path: Path) -> None:
    rows = [{"image": b"%d" % i, "text": f"caption {i}"} for i in range(25)]
    path = write(tmp_path / "big.parquet", rows, row_group_size=4)
    source = open_source(path, SourceConfig(rows_per_shard=8))
    shards = source.shards()
    assert [shard.name for shard in shards] == [f"big-{i:05d}" for i in range(4)]
    assert [shard.rows for shard in shards] == [8, 8, 8, 1]
    # Rows without keys are numbered in the file, however it is cut.
    found = [row for shard in shards for row in source.read(shard)]
    assert found == read(path, rows_per_shard=1000)
    assert [row.key for row in found] == [f"big-{i:08d}" for i in range(25)]
    assert [row.image for row in found if isinstance(row, Sample)] == [r["image"] for r in rows]
    identities = [source.identity(shard) for shard in shards]
    assert len(set(identities)) == 4
    changed = [*rows[:9], {"image": b"?", "text": "caption 9"}, *rows[10:]]
    write(tmp_path / "big.parquet", changed, row_group_size=4)
    same = [source.identity(s) == old for s, old in zip(shards, identities, strict=True)]
    assert same == [True, False, True, True]


def test_rows_without_a_key(tmp_path: Path) -> None:
    rows = [{"key": None, **ROWS[0]} | {"key": key} for key in ("a", None, "")]
    found = read(write(tmp_path / "p.parquet", rows))
    assert isinstance(found[0], Sample)
    for number, row in enumerate(found[1:], start=1):
        assert isinstance(row, Failure)
        assert (row.key, row.stage) == (f"p-{number:08d}", "key")


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"key": "k", "image": b"x"}, {}, "no column captions or .* but key, image; .*caption-col"),
        ({"key": "k", "text": "x"}, {}, "no column image or .* but key, text; .*image-column"),
        ({"image": b"x", "text": "x"}, {"key_column": "id"}, "no column id but image, text; .*key"),
        ({"image": "a.jpg", "text": "x"}, {}, "column image holds string; pictures are binary"),
        ({"image": {"path": "a"}, "text": "x"}, {}, "column image holds struct"),
    ],
)
def test_columns_that_are_not_there(
    tmp_path: Path, row: dict[str, Any], options: dict[str, str], message: str
) -> None:
    path = write(tmp_path / "p.parquet", [row])
    with pytest.raises(DataError, match=message):
        read(path, **options)


def test_damaged_files_are_shards_that_cannot_be_read(tmp_path: Path) -> None:
    rows = [{"key": f"{i}", "image": bytes([i]) * 500, "text": "x"} for i in range(100)]
    whole = Path(write(tmp_path / "a.parquet", rows, row_group_size=50, compression="snappy"))
    content = whole.read_bytes()
    (tmp_path / "b.parquet").write_bytes(content[:-200])
    (tmp_path / "c.parquet").write_bytes(b"")
    second = pq.read_metadata(whole).row_group(1).column(1)
    begin = second.dictionary_page_offset or second.data_page_offset
    (tmp_path / "d.parquet").write_bytes(
        content[:begin]
        + b"\xff" * second.total_compressed_size
        + content[begin + second.total_compressed_size :]
    )
    write(tmp_path / "e.parquet", [{"other": 1}])
    pq.write_table(pa.table({"image": [b""], "text": ["x"]}).slice(0, 0), tmp_path / "f.parquet")
    source = open_source(str(tmp_path))
    shards = source.shards()
    assert [shard.name for shard in shards] == [f"{name}-00000" for name in "abcdef"]
    assert len(list(source.read(shards[0]))) == 100
    messages = ("is damaged .*fetch it again", "is damaged", "is damaged", "no column", "is empty")
    for shard, message in zip(shards[1:], messages, strict=True):
        found = []
        with pytest.raises(DataError, match=message):
            for row in source.read(shard):
                found.append(row.key)
        assert found == [f"{i}" for i in range(50)][: len(found)]
        assert source.identity(shard).size > 0 or shard.name in ("c-00000", "f-00000")
    with pytest.raises(DataError, match="does not exist"):
        list(source.read(shards[0]._replace(address=str(tmp_path / "z.parquet"))))


def test_a_file_that_is_cut_off_after_it_was_listed(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "p.parquet", ROWS))
    source = open_source(str(path))
    (shard,) = source.shards()
    before = source.identity(shard)
    path.write_bytes(path.read_bytes()[:-9])
    assert source.identity(shard) != before
    with pytest.raises(DataError, match="is damaged"):
        list(source.read(shard))


def test_a_file_system_that_fails_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Path(write(tmp_path / "p.parquet", ROWS)).read_bytes()
    fsspec.filesystem("memory").pipe("/parquet-test/p.parquet", content)
    source = open_source("memory://parquet-test/p.parquet")
    (shard,) = source.shards()

    def unreachable(*_: Any) -> bytes:
        raise TimeoutError("no answer")

    monkeypatch.setattr(MemoryFile, "read", unreachable, raising=False)
    with pytest.raises(StorageError, match=r"p\.parquet cannot be used .*no answer"):
        list(source.read(shard))


def test_other_columns_of_the_same_file_are_another_source(tmp_path: Path) -> None:
    row = {"key": "k", "image": b"x", "caption": "one", "alt": "two"}
    path = write(tmp_path / "p.parquet", [row])
    identities = set()
    for name in (None, "caption", "alt"):
        source = open_source(path, SourceConfig(caption_column=name))
        (shard,) = source.shards()
        identities.add(source.identity(shard))
    assert len(identities) == 3
