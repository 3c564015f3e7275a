"""Pools: what can never run here is refused, not waited for."""

import pytest
import ray

from devil.errors import ConfigError
from pipelines.pool import PoolConfig, check_room, over_pool, start_ray


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
