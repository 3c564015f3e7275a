"""Ray for the pipelines' tests: one local instance, started by the first that needs it."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def ray_settings() -> Iterator[None]:
    """Leave no token behind, report nothing, and stop Ray at the end."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    yield
    import ray

    ray.shutdown()
