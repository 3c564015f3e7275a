"""Lists of captions and addresses: cut by lines, every row a picture or a reason."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from web_server import OPEN, PICTURE, Handler, serving

from devil.config import SourceConfig
from devil.data.sample import Failure, Sample
from devil.data.source import open_source
from devil.errors import DataError, StorageError


@pytest.fixture
def server() -> Iterator[str]:
    with serving() as address:
        yield address


def write(folder: Path, lines: list[str], name: str = "cc.tsv") -> str:
    (folder / name).write_bytes("\n".join(lines).encode())
    return str(folder / name)


def test_lists_are_cut_by_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devil.data.url_list.BLOCK_BYTES", 7)
    lines = [f"caption {'x' * (i % 5)}\t" for i in range(11)]
    for ending in ([], [""]):
        path = write(tmp_path, [*lines, *ending])
        for rows in (1, 2, 3, 11, 100):
            source = open_source(path, SourceConfig(rows_per_shard=rows))
            shards = source.shards()
            assert sum(shard.rows or 0 for shard in shards) == 11
            assert {shard.rows for shard in shards[:-1]} <= {rows}
            assert [shard.name for shard in shards] == [f"cc-{i:05d}" for i in range(len(shards))]
            found = [[row.key for row in source.read(shard)] for shard in shards]
            assert [len(keys) for keys in found] == [shard.rows for shard in shards]
            assert [key for keys in found for key in keys] == [f"cc-{i:08d}" for i in range(11)]


def test_rows_and_their_status(tmp_path: Path, server: str) -> None:
    lines = [
        f"a dog\t{server}/dog",
        f"gone\t{server}/404",
        "no address",
        f"one\ttoo\t{server}/many",
        "",
        f"\u72ac \t{server}/\u72ac?q=1\r",
        "inside\tfile:///etc/passwd",
        f"a cat\t{server}/cat",
    ]
    source = open_source(write(tmp_path, lines), SourceConfig(rows_per_shard=5, fetch=OPEN))
    first, second = source.shards()
    rows = [*source.read(first), *source.read(second)]
    assert [row.key for row in rows] == [f"cc-{i:08d}" for i in range(8)]
    kinds = [type(row) for row in rows]
    assert kinds == [Sample, Failure, Failure, Failure, Failure, Sample, Failure, Sample]
    dog, gone, cells, *_, japanese, file, _ = rows
    assert isinstance(dog, Sample) and isinstance(japanese, Sample)
    assert (dog.image, dog.captions, dog.source) == (PICTURE, ("a dog",), f"{server}/dog")
    assert japanese.captions == ("\u72ac",)
    assert Handler.asked["/%E7%8A%AC?q=1"] == 1
    url = f"{server}/404"
    assert gone == Failure(gone.key, url, "fetch", "StatusError", f"404 Not Found from {url}")
    assert cells[2:] == (
        "fetch",
        "DataError",
        "the line has 1 cells; caption TAB address is needed",
    )
    assert isinstance(file, Failure) and file.error == "AddressError"


def test_identity_follows_the_lines(tmp_path: Path) -> None:
    path = write(tmp_path, [f"{i}\thttp://host/{i}" for i in range(6)])
    source = open_source(path, SourceConfig(rows_per_shard=2))
    shards = source.shards()
    before = [source.identity(shard) for shard in shards]
    assert len(set(before)) == 3
    write(tmp_path, [f"{i}\thttp://host/{i if i != 3 else 9}" for i in range(6)])
    same = [source.identity(s) == old for s, old in zip(shards, before, strict=True)]
    assert same == [True, False, True]


def test_files_that_end_early(tmp_path: Path) -> None:
    path = Path(write(tmp_path, ["a\thttp://host/1", "b\thttp://host/2"]))
    source = open_source(str(path), SourceConfig(rows_per_shard=1))
    _, last = source.shards()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="it is empty, or was cut off"):
        next(source.read(last))
    path.write_bytes(b"")
    (empty,) = source.shards()
    assert source.identity(empty).size == 0
    with pytest.raises(DataError, match="it is empty"):
        next(source.read(empty))
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        next(source.read(last))


def test_a_network_that_is_down_is_not_taken_for_dead_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(host: str, *_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "no name servers")

    config = SourceConfig(fetch=replace(OPEN, retries=0))
    few = [f"x\thttp://host{i % 49}.test/{i}" for i in range(100)]
    many = [f"x\thttp://host{i}.test/" for i in range(100)]
    monkeypatch.setattr(socket, "getaddrinfo", down)
    source = open_source(write(tmp_path, few), config)
    assert len(list(source.read(source.shards()[0]))) == 100
    source = open_source(write(tmp_path, many), config)
    with pytest.raises(StorageError, match="50 hosts in a row gave no answer"):
        list(source.read(source.shards()[0]))
