"""Sources in a bucket: the same rows as from a folder, and clear errors when it is out of reach."""

import socket
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import fsspec.config
import pytest
from every_format import CONFIG, rows, upload, write_all
from moto.server import ThreadedMotoServer

from devil.config import SourceConfig
from devil.data.source import FORMATS, open_source
from devil.errors import DataError, StorageError


def reach(endpoint: str) -> dict[str, Any]:
    """Options of s3fs that try once, and not for long."""
    return {
        "endpoint_url": endpoint,
        "key": "key",
        "secret": "secret",
        "config_kwargs": {"connect_timeout": 2, "read_timeout": 5, "retries": {"max_attempts": 1}},
    }


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket's address; what is opened below reaches it as users' programs do."""
    monkeypatch.setitem(fsspec.config.conf, "s3", reach(endpoint))
    name = f"bucket-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


def test_every_format_reads_the_same_from_a_bucket(tmp_path: Path, bucket: str) -> None:
    names = write_all(tmp_path)
    upload(tmp_path, bucket)
    for name in names:
        here, there = (open_source(f"{root}/{name}", CONFIG) for root in (tmp_path, bucket))
        assert rows(here) == rows(there)
        shards = there.shards()
        assert all(shard.address.startswith(bucket) for shard in shards)
        assert [s.name for s in shards] == [s.name for s in here.shards()]
        identities = [there.identity(shard) for shard in shards]
        assert identities == [here.identity(shard) for shard in here.shards()]


def test_what_is_not_there(bucket: str) -> None:
    for name in ("", "/none.tar", "/none.parquet", "/none.tsv", "/none.csv", "/none.json"):
        for address in (bucket, "s3://there-is-no-such-bucket"):
            with pytest.raises(DataError, match=r"no shards at s3://|s3://.* does not exist"):
                open_source(f"{address}{name}").shards()


def test_a_file_that_is_gone_when_its_turn_comes(tmp_path: Path, bucket: str) -> None:
    names = write_all(tmp_path)
    upload(tmp_path, bucket)
    for name in names[:3]:
        source = open_source(f"{bucket}/{name}", CONFIG)
        shard = source.shards()[0]
        fs, path = fsspec.core.url_to_fs(shard.address)
        fs.rm_file(path)
        with pytest.raises(DataError, match=r"s3://.* does not exist"):
            list(source.read(shard))


def test_a_bucket_out_of_reach(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = write_all(tmp_path)
    upload(tmp_path, bucket)
    shards = {name: open_source(f"{bucket}/{name}", CONFIG).shards()[0] for name in names}
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setitem(fsspec.config.conf, "s3", reach(nowhere))
        with pytest.raises(StorageError, match=r"s3://.*cannot be used"):
            open_source(bucket)  # looks into the folder for what its format is
        for name, kind in zip(names, FORMATS, strict=True):
            source = open_source(f"{bucket}/{name}", replace(CONFIG, format=kind))
            with pytest.raises(StorageError, match=r"s3://.*cannot be used .*network"):
                source.shards()
            with pytest.raises(StorageError, match=r"s3://.*cannot be used"):
                list(source.read(shards[name]))
            with pytest.raises(StorageError, match=r"s3://.*cannot be used"):
                source.identity(shards[name])


def test_photos_out_of_reach_are_no_missing_photos(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(tmp_path)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setitem(fsspec.config.conf, "s3", reach(nowhere))
        config = SourceConfig(images=f"{bucket}/photos")
        source = open_source(str(tmp_path / "photos" / "captions.csv"), config)
        (shard,) = source.shards()
        with pytest.raises(StorageError, match=r"s3://.*cannot be used"):
            list(source.read(shard))
