"""What the client repeats, and how long it waits, against a server that fails in every way."""

import datetime
import email.utils
import math
import pickle
import threading
import time

import pytest
from both_clients import CUT, FAST, both, explained, file, picture
from scripted_server import (
    Asked,
    Reply,
    document,
    form,
    problem,
    scripted,
)

from devil.client import Client, RetryConfig
from devil.client.calls import Call
from devil.client.retries import Failed, Tries
from devil.errors import ServiceError
from devil.explanation import Explanation


@pytest.mark.parametrize(
    "failure",
    [
        CUT,
        Reply(body=b"x" * 100, cut=3),
        problem(429),
        problem(503, Retry_After="0"),
        Reply(status=502),
    ],
    ids=["cut", "half", "429", "503", "502"],
)
def test_what_passes_is_repeated(failure: Reply) -> None:
    script = [failure, failure, failure, explained()]
    with scripted(script * 2) as server:
        for found in both(server.address, lambda client: client.explain(file(picture()))):
            assert isinstance(found, Explanation), found
    assert len(server.asked) == 8
    assert len({str(form(asked)) for asked in server.asked}) == 1


@pytest.mark.parametrize(
    "failure", [CUT, problem(429, "full", Retry_After="0")], ids=["cut", "429"]
)
def test_the_number_of_tries_is_bounded(failure: Reply) -> None:
    with scripted([failure] * 9) as server:
        for found in both(server.address, lambda client: client.models()):
            assert isinstance(found, ServiceError)
    assert len(server.asked) == 2 * FAST.tries


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 415, 422, 500])
def test_what_does_not_pass_is_told_at_once(status: int) -> None:
    refusal = problem(status, "layer9 is none.", "layers", X_Request_Id="r1")
    with scripted([refusal] * 2) as server:
        for found in both(server.address, lambda client: client.explain(file(picture()))):
            assert isinstance(found, ServiceError)
            assert (found.status, found.field, found.request_id) == (status, "layers", "r1")
            assert found.detail == "layer9 is none."
            assert str(found) == f"layer9 is none ({status} for POST /v1/explain, request r1)."
            again = pickle.loads(pickle.dumps(found))
            assert vars(again) == vars(found) and str(again) == str(found)
    assert len(server.asked) == 2


def test_retry_after_is_waited_for() -> None:
    """The server refuses whoever comes back earlier than it said."""
    first: list[float] = []

    def script(asked: Asked) -> Reply:
        first.append(time.monotonic())
        early = time.monotonic() < first[0] + 1
        return problem(429, Retry_After="1") if early else document({"models": []})

    with scripted(script) as server, Client(server.address, retry=FAST) as client:
        assert client.models() == []
    assert len(server.asked) == 2


def failed(retry_after: float | None = None, *, passes: bool = True, begun: bool = True) -> Failed:
    return Failed(ServiceError("no", retry_after=retry_after), passes=passes, begun=begun)


GET = Call(method="GET", path="/")


def test_waits_double_up_to_a_limit_and_are_drawn() -> None:
    config = RetryConfig(
        tries=99, total_seconds=math.inf, first_wait_seconds=1.0, longest_wait_seconds=8.0
    )
    runs = []
    for _ in range(200):
        tries = Tries(config)
        runs.append([tries.wait_after(failed(), GET) for _ in range(80)])
    for number, limit in [(0, 1.0), (1, 2.0), (2, 4.0), (3, 8.0), (4, 8.0), (79, 8.0)]:
        waits = [run[number] for run in runs]
        assert limit / 2 <= min(waits) < max(waits) <= limit
        assert len(set(waits)) > 100


def test_a_server_names_the_wait() -> None:
    waits = [Tries(RetryConfig()).wait_after(failed(12.0), GET) for _ in range(100)]
    assert 12 <= min(waits) < max(waits) <= 13


def test_the_whole_time_is_bounded() -> None:
    tries = Tries(RetryConfig(total_seconds=10))
    with pytest.raises(ServiceError) as caught:
        tries.wait_after(failed(11.0), GET)
    assert caught.value.retry_after == 11


@pytest.mark.parametrize("form", ["seconds", "date", "nonsense"])
def test_retry_after_in_each_form(form: str) -> None:
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=2)
    value = {"seconds": "7200", "date": email.utils.format_datetime(later, usegmt=True)}
    once = RetryConfig(tries=1)
    with scripted([problem(503, Retry_After=value.get(form, "soon"))]) as server:
        with Client(server.address, retry=once) as client, pytest.raises(ServiceError) as caught:
            client.models()
    asked = caught.value.retry_after
    assert asked is None if form == "nonsense" else asked is not None and 7000 < asked <= 7200


def test_errors_of_the_connection() -> None:
    with scripted([]) as server:
        address = server.address
    for found in both(address, lambda client: client.models()):
        assert isinstance(found, ServiceError) and found.status is None
        assert address in str(found) and "ConnectError" in str(found)


def test_an_answer_that_takes_too_long_is_not_waited_for_again() -> None:
    held, ended = [], threading.Event()

    def script(asked: Asked) -> Reply:
        held.append(asked)
        ended.wait(60)
        return document({"models": []})

    with scripted(script) as server:
        for found in both(server.address, lambda client: client.models(), timeout=0.2):
            assert isinstance(found, ServiceError) and "longer timeout" in str(found)
        ended.set()
    assert len(held) == 2
