"""Pools: what can never run here is refused, not waited for; workers keep freed memory."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import ray

from devil.errors import ConfigError
from pipelines import pool
from pipelines.pool import KEEP_MEMORY, PoolConfig, check_room, over_pool, start_ray


def test_more_than_this_machine_has_is_refused() -> None:
    start_ray()
    cpus = int(ray.cluster_resources()["CPU"])
    check_room(cpus, 1, 0)
    with pytest.raises(ConfigError, match=f"{cpus + 1} workers with 1 CPU each"):
        check_room(cpus + 1, 1, 0)
    with pytest.raises(ConfigError, match=r"1 GPU each .*0 GPU.*set RAY_ADDRESS"):
        next(over_pool(["unit"], lambda: str, {}, PoolConfig(gpus_per_worker=1)))


def test_a_cluster_may_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    start_ray()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    check_room(1000, 8, 8)


def _environment() -> Callable[[str], dict[str, Any]]:
    return lambda name: {"value": os.environ.get(name, "")}


def test_workers_keep_freed_memory() -> None:
    found = over_pool(list(KEEP_MEMORY), _environment, {}, PoolConfig(workers=1, cpus_per_worker=1))
    assert sorted(record["value"] for record in found) == sorted(KEEP_MEMORY.values())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": -1}, "workers is -1; allowed: at least 0"),
        ({"cpus_per_worker": 0}, "cpus_per_worker is 0; allowed: at least 1"),
        ({"gpus_per_worker": float("nan")}, "gpus_per_worker is nan; allowed: at least 0"),
    ],
)
def test_pools_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PoolConfig(**values)


@pytest.mark.parametrize(
    ("config", "nodes", "resources", "expected"),
    [
        (PoolConfig(workers=8), 1, {"CPU": 2}, 5),  # no more than there are units
        (PoolConfig(cpus_per_worker=2), 3, {"CPU": 9}, 4),
        (PoolConfig(gpus_per_worker=1), 1, {"CPU": 99, "GPU": 3}, 3),
        (PoolConfig(gpus_per_worker=0.5), 2, {"CPU": 1, "GPU": 2}, 4),
        (PoolConfig(gpus_per_worker=1), 1, {"CPU": 99}, 1),  # the cluster may grow
    ],
)
def test_as_many_workers_as_the_cluster_has_room_for(
    monkeypatch: pytest.MonkeyPatch,
    config: PoolConfig,
    nodes: int,
    resources: dict[str, float],
    expected: int,
) -> None:
    monkeypatch.setattr(pool.ray, "nodes", lambda: [{}] * nodes)
    monkeypatch.setattr(pool.ray, "cluster_resources", lambda: resources)
    assert pool.worker_count(config, units=5) == expected
