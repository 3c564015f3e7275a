"""Requests of several pictures, with an explainer that answers as it is told."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serve import app, explaining
from serve.explaining import Explaining, add_explaining_routes
from serve.problems import ProblemError, add_problem_handlers
from serve.schemas import Refusal
from serve.settings import Settings

BUSY = Refusal(429, "wait", None, 1)


@contextmanager
def client(ask: Any, **changes: Any) -> Iterator[TestClient]:
    api = FastAPI()
    settings = Settings(model="m", **changes)
    add_explaining_routes(api, Explaining(settings, {"m": "/m"}, None, ask))  # type: ignore[arg-type]
    add_problem_handlers(api)
    with TestClient(api) as found:
        yield found


def lines(found: TestClient, *pictures: bytes) -> list[dict[str, Any]]:
    images = [base64.b64encode(picture).decode() for picture in pictures]
    answer = found.post("/v1/explain", json={"images": images, "keep": False})
    assert answer.status_code == 200, answer.text
    return sorted(map(json.loads, answer.text.splitlines()), key=lambda line: line["index"])


class Clock:
    """asyncio, whose sleeps are noted and take no time; others in this process sleep as ever."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


def test_a_busy_explainer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request was taken, so that none of its pictures is refused for others' sake."""
    clock = Clock()
    monkeypatch.setattr(explaining, "asyncio", clock)
    asked: Counter[bytes] = Counter()

    async def ask(model: str, picture: bytes, *_: Any) -> bytes | Refusal:
        asked[picture] += 1
        if picture == b"b" and asked[picture] < 4:
            if asked[picture] == 2:
                raise ProblemError(503, "no answer")  # an explainer that was being replaced
            return BUSY
        if picture == b"c":
            return Refusal(422, "image: no picture", "image", None)
        return json.dumps({"of": picture.decode()}).encode()

    with client(ask) as found:
        first, second, third = lines(found, b"a", b"b", b"c")
    assert first == {"index": 0, "explanation": {"of": "a"}}
    assert second == {"index": 1, "explanation": {"of": "b"}}
    assert third["problem"]["status"] == 422 and third["problem"]["field"] == "image"
    assert asked == {b"a": 1, b"b": 4, b"c": 1} and len(clock.slept) == 3


def test_one_that_stays_busy_is_given_up_in_time() -> None:
    async def ask(*_: Any) -> Refusal:
        return BUSY._replace(retry_after=30)

    with client(ask, timeout_seconds=20) as found:
        (line,) = lines(found, b"a", b"b")[:1]
    assert line["problem"]["status"] == 429


def test_a_failure_of_ours_is_a_line_without_its_reason() -> None:
    async def ask(model: str, picture: bytes, *_: Any) -> bytes:
        if picture == b"b":
            raise RuntimeError("/secret/place")
        return b"{}"

    with client(ask) as found:
        good, bad = lines(found, b"a", b"b")
    assert "explanation" in good
    assert bad["problem"]["status"] == 500 and "secret" not in json.dumps(bad)


@pytest.mark.parametrize(
    ("device", "replicas", "gpus", "share"),
    [
        ("cpu", 4, 8, 0),
        ("auto", 1, 0, 0),
        ("auto", 1, 8, 1),
        ("auto", 8, 8, 1),
        ("auto", 3, 2, 1 / 2),  # one GPU takes two, the other one
        ("auto", 5, 2, 1 / 3),
        ("cuda", 2, 0, 1 / 2),  # a cluster that grows from none
    ],
)
def test_gpus_take_whole_numbers_of_replicas(
    monkeypatch: pytest.MonkeyPatch, device: str, replicas: int, gpus: int, share: float
) -> None:
    monkeypatch.setattr(app.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(app.ray, "cluster_resources", lambda: {"CPU": 2, "GPU": gpus})
    settings = Settings(model="m", device=device, replicas=replicas)  # type: ignore[arg-type]
    assert app._gpus(settings) == pytest.approx(share)
