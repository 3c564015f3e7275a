"""Extraction onto a disk that fills up: a small tmpfs, in a mount namespace of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_backbone_weights, tiny_shards

from devil.config import ExtractionConfig, to_dict
from devil.features import FeatureStore
from pipelines.extract import ExtractOptions, extract
from pipelines.pool import PoolConfig

ROOT = Path(__file__).parents[2]
SHARDS = 6
MOUNT = ("unshare", "--map-root-user", "--mount", "--")
ON_SMALL_DISK = "mount -t tmpfs -o size={kilobytes}k tmpfs '{disk}' && exec '{python}' -c '{code}'"
FILL = """
import json, os, shutil, subprocess, sys
from devil.config import BackboneConfig, ExtractionConfig, from_dict
from devil.errors import StorageError
from devil.features import FeatureStore
from pipelines.extract import ExtractOptions, extract
from pipelines.pool import PoolConfig

given = json.loads(os.environ["GIVEN"])
disk, store = given["disk"], given["disk"] + "/store"
options = ExtractOptions(
    shards=given["shards"],
    store=store,
    backbone=from_dict(BackboneConfig, given["backbone"]),
    extraction=from_dict(ExtractionConfig, given["extraction"]),
    pool=PoolConfig(workers=1, cpus_per_worker=1),
)
try:
    extract(options)
    message = ""
except StorageError as error:
    message = str(error)
opened = FeatureStore.open(store)
whole = [len(opened.keys(part)) for part in opened.parts()]
subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
extract(options)
temporary = [name for _, _, names in os.walk(store) for name in names if name.endswith(".tmp")]
shutil.copytree(store, given["copy"])
print("FOUND" + json.dumps([message, whole, temporary]))
"""


def may_mount() -> bool:
    """Whether this machine lets us have a file system of our own."""
    try:
        command = [*MOUNT, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not may_mount(), reason="needs the right to mount a tmpfs (user namespaces)")
def test_a_full_disk_is_told_and_the_same_command_goes_on(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "shards", shards=SHARDS, rows=20)
    options = ExtractOptions(
        shards=str(tmp_path / "shards"),
        store=str(tmp_path / "elsewhere"),
        backbone=tiny_backbone_weights(tmp_path / "backbone"),
        extraction=ExtractionConfig(draws=200, batch_size=10),
        pool=PoolConfig(workers=1, cpus_per_worker=1),
    )
    extract(options)
    disk = tmp_path / "disk"
    disk.mkdir()
    given = {
        "shards": options.shards,
        "disk": str(disk),
        "copy": str(tmp_path / "copy"),
        "backbone": to_dict(options.backbone),
        "extraction": to_dict(options.extraction),
    }
    part = max(file.stat().st_size for file in (tmp_path / "elsewhere").glob("part-*"))
    kilobytes = int(3.5 * part / 1000)  # three parts, their errors and the manifest
    code = ON_SMALL_DISK.format(disk=disk, kilobytes=kilobytes, python=sys.executable, code=FILL)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [*MOUNT, "sh", "-c", code],
        env=os.environ | {"GIVEN": json.dumps(given), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    message, whole, temporary = json.loads(ran.stdout.rpartition("FOUND")[2])
    assert "no room left" in message and "what is finished stays" in message
    assert 0 < len(whole) < SHARDS and set(whole) == {20}
    assert temporary == []  # what the first run's workers were at when it ended is gone
    found, expected = (FeatureStore.open(str(tmp_path / name)) for name in ("copy", "elsewhere"))
    assert found.part_names() == expected.part_names()
    for name in expected.part_names():
        assert found.read(found.part_path(name)).equals(expected.read(expected.part_path(name)))
