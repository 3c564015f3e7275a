"""Extraction into a bucket that goes out of reach: told, and completed when it is back."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import fsspec.config
import pytest
import ray
from moto.server import ThreadedMotoServer
from tiny import tiny_backbone_weights, tiny_shards

from devil.config import ExtractionConfig
from devil.errors import StorageError
from devil.features import FeatureStore
from pipelines.extract import ExtractOptions, extract
from pipelines.pool import PoolConfig

SHARDS, ROWS = 12, 10
BUCKET = "s3://devil-outage"


class Bucket:
    """An S3 server in this process, which can be switched off and on; what it holds stays."""

    def __init__(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        _, self.port = self.server.get_host_and_port()

    def off(self) -> None:
        self.server.stop()

    def on(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()

    def options(self) -> dict[str, Any]:
        return {
            "endpoint_url": f"http://127.0.0.1:{self.port}",
            "key": "key",
            "secret": "secret",
            "config_kwargs": {
                "connect_timeout": 2,
                "read_timeout": 5,
                "retries": {"max_attempts": 1},
            },
        }


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The server; this process and Ray's workers know it as users' programs do."""
    ray.shutdown()  # workers take their environment from a Ray that is started below
    bucket = Bucket()
    monkeypatch.setitem(fsspec.config.conf, "s3", bucket.options())
    monkeypatch.setenv("FSSPEC_S3", json.dumps(bucket.options()))
    fsspec.filesystem("s3").mkdir(BUCKET)
    yield bucket
    ray.shutdown()
    bucket.off()


def parts() -> list[str]:
    fs = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    return fs.glob(f"{BUCKET}/store/part-*")


def test_an_outage_is_told_and_the_same_command_goes_on(tmp_path: Path, bucket: Bucket) -> None:
    tiny_shards(tmp_path / "shards", shards=SHARDS, rows=ROWS)
    values: dict[str, Any] = {
        "shards": str(tmp_path / "shards"),
        "backbone": tiny_backbone_weights(tmp_path / "backbone"),
        "extraction": ExtractionConfig(draws=20, batch_size=5),
        "pool": PoolConfig(workers=1, cpus_per_worker=1),
    }
    there = ExtractOptions(store=f"{BUCKET}/store", **values)

    def switch_off() -> None:
        while not parts():
            time.sleep(0.05)
        bucket.off()

    thread = threading.Thread(target=switch_off)
    thread.start()
    with pytest.raises(StorageError, match=rf"{BUCKET}.* cannot be used .*what is finished stays"):
        extract(there)
    thread.join()
    bucket.on()
    store = FeatureStore.open(there.store)
    whole = [len(store.keys(part)) for part in store.parts()]
    assert 0 < len(whole) < SHARDS and set(whole) == {ROWS}

    assert extract(there).rows == SHARDS * ROWS
    here = ExtractOptions(store=str(tmp_path / "store"), **values)
    extract(here)
    one, two = FeatureStore.open(here.store), FeatureStore.open(there.store)
    assert one.part_names() == two.part_names()
    for name in one.part_names():
        assert one.read(one.part_path(name)).equals(two.read(two.part_path(name)))
    fs = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    assert not [path for path in fs.find(f"{BUCKET}/store") if path.endswith(".tmp")]
