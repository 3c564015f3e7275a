"""Figures: from a tiny application on a Ray of its own to what Prometheus would scrape."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

Found = list[tuple[str, dict[str, str], float]]
"""Name, tags and value of each line."""


@pytest.fixture(scope="module")
def found() -> Found:
    """What the metrics port says of ours."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(Path(__file__).parent / "metered.py"), str(port)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert ran.returncode == 0, ran.stderr[-3000:]
    printed = next(line for line in ran.stdout.splitlines() if line.startswith("["))  # not Ray's
    lines = [re.fullmatch(r"(\w+)\{(.*)\} (\S+)", s) for s in json.loads(printed)]
    return [
        (line[1], dict(re.findall(r'(\w+)="([^"]*)"', line[2])), float(line[3]))
        for line in lines
        if line
    ]


def value(found: Found, name: str, **tags: str) -> float:
    """Of the one line with a name and tags."""
    (one,) = [v for n, t, v in found if n == f"ray_{name}" and tags.items() <= t.items()]
    return one


def test_requests_by_route_and_status(found: Found) -> None:
    tags = {"route": "/v1/ask/{name}", "method": "GET", "status": "200"}
    assert value(found, "devil_requests_total", **tags) == 3
    assert value(found, "devil_request_seconds_count", route="/v1/ask/{name}") == 3
    assert "/before" not in str(found)


def test_stages(found: Found) -> None:
    assert value(found, "devil_stage_seconds_count", stage="queue") == 3
    assert value(found, "devil_stage_seconds_bucket", stage="queue", le="0.03") == 0
    assert value(found, "devil_stage_seconds_bucket", stage="queue", le="0.1") == 3
    assert value(found, "devil_stage_seconds_count", stage="decode") == 3
    assert value(found, "devil_stage_seconds_bucket", stage="decode", le="0.001") == 0


def test_batches_and_audits(found: Found) -> None:
    assert value(found, "devil_waiting_locations") == 7
    assert value(found, "devil_locations_total") == 3 * 48
    assert value(found, "devil_batch_fill_count") == 3
    assert value(found, "devil_batch_fill_bucket", le="0.7") == 0
    assert value(found, "devil_batch_fill_bucket", le="0.8") == 3
    assert value(found, "devil_audits", state="running") == 2
    assert value(found, "devil_audits", state="failed") == 0
