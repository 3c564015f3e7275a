"""Fetching: failures by kind, retries, limits, and never from the inner network."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from web_server import OPEN, PICTURE, Handler, serving

from devil.config import FetchConfig
from devil.data import fetcher as module
from devil.data.fetcher import Fetcher, retry_after
from devil.errors import AddressError, FetchError, SizeError, StatusError


@pytest.fixture
def server() -> Iterator[str]:
    with serving() as address:
        yield address


def fetch(*addresses: str, config: FetchConfig = OPEN) -> list[Any]:
    with Fetcher(config) as fetcher:
        return list(fetcher.fetched(addresses))


@pytest.mark.parametrize(
    ("path", "kind", "message", "tries"),
    [
        ("404", StatusError, "404 Not Found", 1),
        ("503", StatusError, "503", 2),
        ("204", StatusError, "204", 1),
        ("busy-for-hours", StatusError, "429", 1),
        ("huge", SizeError, "20,001 bytes; allowed: 20,000", 1),
        ("endless", SizeError, "over 20,000 bytes", 1),
        ("truncated", FetchError, "RemoteProtocolError", 2),
        ("loop", StatusError, "more than 5 redirects", 6),
        ("to/ftp://host/a", AddressError, "is no web address", 1),
        ("to/http://[::1", AddressError, "no web address", 1),
        ("to/http://127.0.0.1:99999/", AddressError, "the port 99999; allowed: 1 to 65535", 1),
        ("busy-for-ages", StatusError, "429", 2),
        ("encoded/gzip", StatusError, "is encoded by gzip; allowed: identity", 1),
        ("encoded/gzip,gzip", StatusError, "is encoded by gzip,gzip", 1),
    ],
)
def test_failures(server: str, path: str, kind: type, message: str, tries: int) -> None:
    (found,) = fetch(f"{server}/{path}")
    assert type(found) is kind
    assert message in str(found)
    assert Handler.asked.total() == tries


def test_servers_that_keep_one_waiting(server: str) -> None:
    (found,) = fetch(f"{server}/silent", config=replace(OPEN, timeout_seconds=0.3))
    assert type(found) is FetchError and "Timeout" in str(found)
    (found,) = fetch(f"{server}/drip", config=replace(OPEN, total_seconds=1.0))
    assert type(found) is FetchError and "more than 1.0 seconds" in str(found)
    assert Handler.asked["/drip"] <= 1


@pytest.mark.parametrize(
    "path", ["busy", "fails-once", "to//other", "relative", "a?b=c", "encoded/Identity"]
)
def test_what_is_there_in_the_end(server: str, path: str) -> None:
    assert fetch(f"{server}/{path}") == [PICTURE]


@pytest.mark.parametrize(
    "address",
    ["", "dog.jpg", "ftp://host/a", "http://", "http://[::1", "http://a b/", "http://\ud800/"],
)
def test_addresses_that_are_none(address: str) -> None:
    (found,) = fetch(address)
    assert isinstance(found, FetchError) and "\n" not in str(found)


@pytest.mark.parametrize("port", [-1, 0, 65_536, 99_999])
def test_ports_that_are_none(port: int) -> None:
    (found,) = fetch(f"http://127.0.0.1:{port}/x")
    assert type(found) is AddressError and f"the port {port}" in str(found)


def test_whatever_a_request_raises_is_a_failure_of_its_row(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def broken(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "broken.test":
            raise ExceptionGroup("several", [RuntimeError("why")])
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", broken)
    failed, found = fetch("http://broken.test/a", f"{server}/a")
    assert type(failed) is FetchError and "broken.test/a: ExceptionGroup several" in str(failed)
    assert found == PICTURE


def test_order_and_limits(server: str) -> None:
    config = replace(OPEN, concurrency=6, per_host=2)
    addresses = [f"{server}/{'held' if i % 3 else 'picture'}?{i}" for i in range(20)]
    found = fetch(*addresses, config=config)
    assert found == [b"x" if i % 3 else PICTURE for i in range(20)]
    assert Handler.most_at_once == 2


def test_only_so_many_are_fetched_ahead(server: str) -> None:
    taken = []

    def addresses() -> Iterator[str]:
        for i in range(100):
            taken.append(i)
            yield f"{server}/{i}x"

    with Fetcher(replace(OPEN, concurrency=2)) as fetcher:
        assert next(fetcher.fetched(addresses())) == PICTURE
    assert len(taken) == 2 * module.WINDOW


def test_private_machines_are_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = server.rpartition(":")[2]
    closed = replace(OPEN, allow_private=False)
    inside = ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"]
    for found in fetch(*(f"http://{host}:{port}/" for host in inside), config=closed):
        assert type(found) is AddressError and "no public address" in str(found)
    # A redirect from a public machine leads inside: the first look-up alone is let pass.
    passed = iter([True])
    monkeypatch.setattr("devil.data.web_address.is_public", lambda _: next(passed, False))
    (found,) = fetch(f"{server}/to/{server}/secret", config=closed)
    assert type(found) is AddressError
    assert list(Handler.asked) == [f"/to/{server}/secret"]


def test_names_are_looked_up_once_for_each_request(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name that is harmless when it is checked and leads elsewhere when it is looked up again.
    looked_up = []
    real = socket.getaddrinfo

    def rebinding(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "rebinding.test":
            looked_up.append(host)
            return real("127.0.0.1" if len(looked_up) == 1 else "192.0.2.1", 0)
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    port = server.rpartition(":")[2]
    assert fetch(f"http://user:password@rebinding.test:{port}/a") == [PICTURE]
    assert looked_up == ["rebinding.test"]
    assert Handler.hosts == [f"rebinding.test:{port}"]


def test_proxies_of_the_environment_are_not_used(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(f"{server}/a") == [PICTURE]


def test_retry_after() -> None:
    assert retry_after("") is None and retry_after("soon") is None
    assert retry_after("Mon, 01 Jan 99999999999 00:00:00 GMT") is None
    assert retry_after("7") == 7.0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    later = retry_after("Wed, 21 Oct 2999 07:28:00 GMT")
    assert later is not None and later > 1e6


def test_name_servers_are_asked_again(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = socket.getaddrinfo, []

    def busy(host: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(host)
        if host == "unknown.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if len(asked) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", busy)
    port = server.rpartition(":")[2]
    assert fetch(f"http://picture.test:{port}/a") == [PICTURE]
    (found,) = fetch(f"http://unknown.test:{port}/a")
    assert type(found) is FetchError and "unknown.test is not found" in str(found)
    assert asked == ["picture.test", "picture.test", "unknown.test"]
