"""Pools: what can never run here is refused, not waited for; workers keep freed memory."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import ray

from devil.errors import ConfigError
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
