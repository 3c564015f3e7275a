"""Hostile requests to the whole application; `benchmarks/hostile.py` sends thousands."""

from pathlib import Path

import pytest

from benchmarks.hostile import HostileOptions, hostile
from benchmarks.hostile_wire import ATTACKS

pytestmark = pytest.mark.live

REQUESTS = 600


def test_no_fault_no_hang_and_the_next_good_request_is_fine(address: str, tmp_path: Path) -> None:
    results = hostile(
        HostileOptions(
            address=address, requests=REQUESTS, seed=1, results=str(tmp_path / "hostile.json")
        )
    )
    assert results["failures"] == []
    assert set(results["answers"]) == set(ATTACKS)
    assert sum(results["statuses"].values()) == REQUESTS
    assert results["good requests answered"] == REQUESTS // 100 + 1
    # The requests reached what they were made for.
    assert {"400", "404", "405", "413", "415", "422"} <= set(results["statuses"])
