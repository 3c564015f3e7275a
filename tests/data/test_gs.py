"""Google's buckets, on a server of this machine: sources are read, and a store is written."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from every_format import write_all
from gcp_storage_emulator.server import create_server
from tiny import tiny_store

BUCKET = "gs://bucket"
TESTS = Path(__file__).parents[1]
ASK = """
import sys
from pathlib import Path
from every_format import CONFIG, rows, upload
from tiny import load_backbone
from devil.data.source import open_source
from devil.extraction import Extractor
from devil.features import FeatureStore

folder, bucket = Path(sys.argv[1]), "gs://bucket"
upload(folder, f"{bucket}/sources")
for name in sys.argv[4:]:
    here, there = (open_source(f"{root}/{name}", CONFIG) for root in (folder, f"{bucket}/sources"))
    assert rows(here) == rows(there), name
    identities = [[source.identity(s) for s in source.shards()] for source in (here, there)]
    assert identities[0] == identities[1], name

local = FeatureStore.open(sys.argv[2])
store = FeatureStore.create(f"{bucket}/store", local.manifest)
assert store.parts() == []
source = open_source(sys.argv[3])
extractor = Extractor(load_backbone(local.manifest.backbone), source, store, threads=1)
for shard in source.shards():
    assert not extractor(shard).skipped and extractor(shard).skipped
opened = FeatureStore.open(store.root)
assert opened.part_names() == local.part_names()
for name in local.part_names():
    assert opened.read(opened.part_path(name)).equals(local.read(local.part_path(name)))
left = opened.fs.find(opened.path)
assert not [path for path in left if path.endswith(".tmp")], left
print("every format, and a store")
"""


@pytest.fixture
def endpoint() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


def test_sources_and_a_store_in_a_bucket(endpoint: str, tmp_path: Path) -> None:
    """In a process of its own: gcsfs decides on import how it asks what kind of bucket it has."""
    names = write_all(tmp_path / "sources")
    store = tiny_store(tmp_path / "tiny", shards=2, rows=3)
    environment = os.environ | {
        "FSSPEC_GS_ENDPOINT_URL": endpoint,
        "FSSPEC_GS_TOKEN": "anon",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
    }
    arguments = (str(tmp_path / "sources"), store.root, str(tmp_path / "tiny" / "shards"), *names)
    found = subprocess.run(
        [sys.executable, "-c", ASK, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout == "every format, and a store\n"
