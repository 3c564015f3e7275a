"""Ten thousand dirty rows through workers and nodes that die: each is kept or explained once."""

import json
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import ray.cluster_utils
from dirty import EMPTY, TRUNCATED, DirtyShard, dirty_shards
from processes import workers_of
from tiny import tiny_backbone_weights, tiny_shards

from devil.config import ExtractionConfig
from devil.data.shard import Shard
from devil.errors import DataError, DevilError
from devil.features import FeatureStore
from pipelines import extract as extract_module
from pipelines.extract import ExtractionWorker, ExtractOptions, extract
from pipelines.pool import PoolConfig, over_pool, start_ray

ACTOR = r"^ray::.*_Actor"
"""Command of a pool's worker."""


class Input:
    """The shards, what is in them, and the options of their extraction."""

    def __init__(self, folder: Path) -> None:
        self.shards = folder / "shards"
        self.content = dirty_shards(self.shards)
        self.backbone = tiny_backbone_weights(folder / "backbone")

    def options(self, store: Path, **changes: Any) -> ExtractOptions:
        values: dict[str, Any] = {
            "shards": str(self.shards),
            "store": str(store),
            "backbone": self.backbone,
            "extraction": ExtractionConfig(draws=2, batch_size=50),
            "pool": PoolConfig(workers=2, cpus_per_worker=1),
        }
        return ExtractOptions(**(values | changes))


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Input:
    return Input(tmp_path_factory.mktemp("dirty"))


@pytest.fixture(scope="module")
def undisturbed(dirty: Input, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    store = tmp_path_factory.mktemp("undisturbed")
    extract(dirty.options(store))
    return FeatureStore.open(str(store))


def rows_of(store: FeatureStore, name: str) -> tuple[list[str], list[dict[str, str]]]:
    kept = store.read(store.part_path(name), ["key"]).column("key").to_pylist()
    return kept, pq.read_table(f"{store.path}/errors/part-{name}.parquet").to_pylist()


def test_every_row_is_kept_or_explained_once(dirty: Input, undisturbed: FeatureStore) -> None:
    assert undisturbed.part_names() == set(dirty.content)
    errors, rows = Counter[str](), 0
    for name, shard in dirty.content.items():
        kept, failed = rows_of(undisturbed, name)
        found = Counter([*kept, *(e["key"] for e in failed if e["stage"] != "read")])
        assert found == Counter(shard.keys[: sum(found.values())])  # none twice, none skipped
        assert sum(found.values()) >= shard.whole - 1  # a row ends where the next one begins
        check_failures(name, shard, failed)
        part = undisturbed.metadata(undisturbed.part_path(name))
        assert (part.rows, part.errors) == (len(kept), len(failed))
        assert sum(part.failed.values()) == part.errors
        errors.update(part.failed)
        rows += len(kept)
    assert errors["decode ImageError"] > 90 and errors["read DataError"] == 4
    assert errors["key DataError"] == 5
    manifest = undisturbed.manifest
    assert (manifest.errors, manifest.rows) == (errors.total(), rows)


def check_failures(name: str, shard: DirtyShard, failed: list[dict[str, str]]) -> None:
    damaged = [e for e in failed if e["stage"] == "read"]
    assert len(damaged) == (int(name) in (*TRUNCATED, EMPTY))
    decoded = {e["key"] for e in failed if e["stage"] == "decode"}
    assert decoded <= shard.corrupt
    assert decoded == shard.corrupt or int(name) in TRUNCATED
    doubled = [e["key"] for e in failed if e["stage"] == "key"]
    assert doubled == [key for key, count in Counter(shard.keys).items() if count > 1]


def assert_same(one: FeatureStore, two: FeatureStore) -> None:
    """Bit for bit the same rows and errors."""
    assert one.part_names() == two.part_names()
    for name in sorted(one.part_names()):
        assert one.read(one.part_path(name)).equals(two.read(two.part_path(name))), name
    assert one.errors().equals(two.errors())
    assert not list(Path(two.root).rglob(".*.tmp"))


@contextmanager
def killing(store: Path, every: int) -> Iterator[list[int]]:
    """SIGKILL the first worker seen, and one after `every` finished parts, whatever it is at.

    Parts are counted, not seconds, so that a fast machine sees as many kills as a slow one, and
    workers that take long to start do start. The list gets the killed processes.
    """
    killed: list[int] = []
    stopped = threading.Event()
    rng = random.Random(0)

    def kill() -> None:
        due = 0
        while not stopped.wait(0.05):
            parts = len(list(store.glob("part-*")))
            if parts < due or stopped.wait(rng.random() / 2):
                continue
            if workers := workers_of(os.getpid(), ACTOR):
                killed.append(rng.choice(sorted(workers)))
                os.kill(killed[-1], signal.SIGKILL)
                due = parts + every

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        stopped.set()
        thread.join()


def test_workers_that_are_killed_change_nothing(
    dirty: Input, undisturbed: FeatureStore, tmp_path: Path
) -> None:
    with killing(tmp_path, every=20) as killed:
        extract(dirty.options(tmp_path))
    assert len(killed) >= 4
    assert_same(undisturbed, FeatureStore.open(str(tmp_path)))


@pytest.fixture
def cluster() -> Iterator[ray.cluster_utils.Cluster]:
    """A head and two more nodes on this machine, joined by this process."""
    ray.shutdown()
    cluster = ray.cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, logging_level="WARNING")
    cluster.nodes_that_die = nodes  # type: ignore[attr-defined]
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_nodes_that_are_lost_change_nothing(
    dirty: Input, undisturbed: FeatureStore, tmp_path: Path, cluster: Any
) -> None:
    pool = PoolConfig(workers=4, cpus_per_worker=1)
    lost = []

    def lose() -> None:
        for node, parts in zip(cluster.nodes_that_die, (5, 25), strict=True):
            while len(list(tmp_path.glob("part-*"))) < parts:
                if finished.wait(0.1):
                    return
            cluster.remove_node(node, allow_graceful=False)
            lost.append(node)

    finished = threading.Event()
    thread = threading.Thread(target=lose)
    thread.start()
    try:
        extract(dirty.options(tmp_path, pool=pool))
    finally:
        finished.set()
        thread.join()
    assert len(lost) == 2
    assert_same(undisturbed, FeatureStore.open(str(tmp_path)))


def test_a_shard_that_kills_its_workers_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_shards(tmp_path / "shards", shards=4, rows=3)
    options = ExtractOptions(
        shards=str(tmp_path / "shards"),
        store=str(tmp_path / "store"),
        backbone=tiny_backbone_weights(tmp_path / "backbone"),
        pool=PoolConfig(workers=2, cpus_per_worker=1),
    )

    class DeadlyWorker(ExtractionWorker):
        """Dies on one shard, as of a picture that takes all memory; travels by value."""

        def __call__(self, shard: str) -> dict[str, Any]:
            if Shard(*json.loads(shard)).name == "00001":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(shard)

    monkeypatch.setattr(extract_module, "ExtractionWorker", DeadlyWorker)
    with pytest.raises(DataError, match=r"died on 1 shards, which were set aside: 00001\. All oth"):
        extract(options)
    store = FeatureStore.open(str(tmp_path / "store"))
    assert store.part_names() == {"00000", "00002", "00003"}
    assert store.manifest.rows == 9
    monkeypatch.undo()
    assert extract(options).rows == 12


def test_a_deadly_unit_ends_a_run_that_does_not_set_aside() -> None:
    class Worker:
        def __call__(self, unit: str) -> dict[str, Any]:
            os.kill(os.getpid(), signal.SIGKILL)
            return {}

    start_ray()
    with pytest.raises(DevilError, match="3 workers died on bad; look at their logs"):
        list(over_pool(["bad"], Worker, {}, PoolConfig(workers=1, cpus_per_worker=1)))


def test_workers_that_die_while_they_start_end_the_run() -> None:
    class Worker:
        """As one whose model does not fit into the memory."""

        def __init__(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    start_ray()
    with pytest.raises(DevilError, match="workers died 3 times while they started"):
        list(over_pool(["unit"], Worker, {}, PoolConfig(workers=1, cpus_per_worker=1)))
