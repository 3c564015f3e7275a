"""The sender of hostile requests (`benchmarks/hostile.py`): what it sends, and what it minds."""

from pathlib import Path

import pytest

from benchmarks.hostile import HostileOptions, fault, hostile
from benchmarks.hostile_wire import attacks
from benchmarks.raw_http import Received
from devil.errors import ConfigError


def test_requests_are_the_same_for_a_seed() -> None:
    assert list(attacks(3, 50)) == list(attacks(3, 50))
    assert list(attacks(3, 50)) != list(attacks(4, 50))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n", "status 500"),
        (b"HTTP/1.1 422 X\r\ncontent-type: text/html\r\n\r\n", "status 422 as 'text/html'"),
        (b"HTTP/1.1 200 OK\r\n\r\nTraceback (most recent call last)", "speaks of the code"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 X\r\n\r\n", "status 503"),
    ],
)
def test_what_counts_as_a_fault(data: bytes, why: str) -> None:
    assert why in (fault(Received(data=data, hung=False)) or "")


def test_what_does_not() -> None:
    for data in (
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{}",
        b"HTTP/1.1 404 X\r\ncontent-type: application/problem+json\r\n\r\n{}",
        b"HTTP/1.1 400 X\r\ncontent-type: text/plain; charset=utf-8\r\n\r\nInvalid HTTP request",
    ):
        assert fault(Received(data=data, hung=False)) is None
    assert fault(Received(data=b"", hung=True)) == "hung"


def test_other_machines_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another machine"):
        hostile(HostileOptions(address="http://192.0.2.7", results=str(tmp_path / "r.json")))
