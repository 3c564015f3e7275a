"""Lists of addresses: cut by lines, fetched within limits, and never from the inner network."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from devil.config import FetchConfig, SourceConfig
from devil.data import fetcher as module
from devil.data.fetcher import Fetcher, retry_after
from devil.data.sample import Failure, Sample
from devil.data.source import open_source
from devil.data.web_address import is_public
from devil.errors import (
    AddressError,
    DataError,
    FetchError,
    SizeError,
    StatusError,
    StorageError,
)

PICTURE = b"\xff\xd8" + bytes(range(256)) * 40
OPEN = FetchConfig(
    allow_private=True, retries=1, timeout_seconds=60.0, total_seconds=60.0, max_bytes=20_000
)


class Handler(BaseHTTPRequestHandler):
    """What servers do, by path; `asked` counts requests."""

    asked: Counter[str]
    hosts: list[str]
    at_once: int
    most_at_once: int
    lock: threading.Lock
    ended: threading.Event

    def do_GET(self) -> None:
        with Handler.lock:
            Handler.asked[self.path] += 1
            Handler.hosts.append(self.headers["Host"])
            Handler.at_once += 1
            Handler.most_at_once = max(Handler.most_at_once, Handler.at_once)
        try:
            self.answer(self.path.strip("/").partition("?")[0])
        except OSError:
            pass  # the client has gone
        finally:
            with Handler.lock:
                Handler.at_once -= 1

    def answer(self, name: str) -> None:
        first = Handler.asked[self.path] == 1
        if name == "silent":
            Handler.ended.wait()
        elif name == "drip":
            self.give(200, {"Content-Length": "20000"})
            while not Handler.ended.wait(0.1):
                self.wfile.write(b"x")
        elif name == "huge":
            self.give(200, {"Content-Length": "20001"}, b"x" * 20001)
        elif name == "endless":
            self.give(200, {}, b"x" * 30_000)
        elif name == "truncated":
            self.give(200, {"Content-Length": "5000"}, b"x" * 100)
        elif name.isdecimal():
            self.give(int(name), {})
        elif name == "busy" and first:
            self.give(429, {"Retry-After": "1"})
        elif name == "busy-for-hours":
            self.give(429, {"Retry-After": "7200"})
        elif name == "fails-once" and first:
            self.give(500, {})
        elif name.startswith("to/"):
            self.give(302, {"Location": name.removeprefix("to/")})
        elif name == "loop":
            self.give(301, {"Location": "/loop"})
        elif name == "held":
            time.sleep(0.1)
            self.give(200, {"Content-Length": "1"}, b"x")
        else:
            length = {"Content-Length": str(len(PICTURE)), "Content-Type": "text/html"}
            self.give(200, {**length, "Set-Cookie": "a=b"}, PICTURE)

    def give(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked, Handler.hosts, Handler.lock = Counter(), [], threading.Lock()
    Handler.at_once, Handler.most_at_once, Handler.ended = 0, 0, threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as here:
        thread = threading.Thread(target=here.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{here.server_port}"
        Handler.ended.set()
        here.shutdown()
        thread.join()


def fetch(*addresses: str, config: FetchConfig = OPEN) -> list[Any]:
    with Fetcher(config) as fetcher:
        return list(fetcher.fetched(addresses))


def write(folder: Path, lines: list[str], name: str = "cc.tsv") -> str:
    (folder / name).write_bytes("\n".join(lines).encode())
    return str(folder / name)


def test_lists_are_cut_by_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devil.data.url_list.BLOCK_BYTES", 7)
    lines = [f"caption {'x' * (i % 5)}\t" for i in range(11)]
    for ending in ([], [""]):
        path = write(tmp_path, [*lines, *ending])
        for rows in (1, 2, 3, 11, 100):
            source = open_source(path, SourceConfig(rows_per_shard=rows))
            shards = source.shards()
            assert sum(shard.rows or 0 for shard in shards) == 11
            assert {shard.rows for shard in shards[:-1]} <= {rows}
            assert [shard.name for shard in shards] == [f"cc-{i:05d}" for i in range(len(shards))]
            found = [[row.key for row in source.read(shard)] for shard in shards]
            assert [len(keys) for keys in found] == [shard.rows for shard in shards]
            assert [key for keys in found for key in keys] == [f"cc-{i:08d}" for i in range(11)]


def test_rows_and_their_status(tmp_path: Path, server: str) -> None:
    lines = [
        f"a dog\t{server}/dog",
        f"gone\t{server}/404",
        "no address",
        f"one\ttoo\t{server}/many",
        "",
        f"\u72ac \t{server}/\u72ac?q=1\r",
        "inside\tfile:///etc/passwd",
        f"a cat\t{server}/cat",
    ]
    source = open_source(write(tmp_path, lines), SourceConfig(rows_per_shard=5, fetch=OPEN))
    first, second = source.shards()
    rows = [*source.read(first), *source.read(second)]
    assert [row.key for row in rows] == [f"cc-{i:08d}" for i in range(8)]
    kinds = [type(row) for row in rows]
    assert kinds == [Sample, Failure, Failure, Failure, Failure, Sample, Failure, Sample]
    dog, gone, cells, *_, japanese, file, _ = rows
    assert isinstance(dog, Sample) and isinstance(japanese, Sample)
    assert (dog.image, dog.captions, dog.source) == (PICTURE, ("a dog",), f"{server}/dog")
    assert japanese.captions == ("\u72ac",)
    assert Handler.asked["/%E7%8A%AC?q=1"] == 1
    url = f"{server}/404"
    assert gone == Failure(gone.key, url, "fetch", "StatusError", f"404 Not Found from {url}")
    assert cells[2:] == (
        "fetch",
        "DataError",
        "the line has 1 cells; caption TAB address is needed",
    )
    assert isinstance(file, Failure) and file.error == "AddressError"


def test_identity_follows_the_lines(tmp_path: Path) -> None:
    path = write(tmp_path, [f"{i}\thttp://host/{i}" for i in range(6)])
    source = open_source(path, SourceConfig(rows_per_shard=2))
    shards = source.shards()
    before = [source.identity(shard) for shard in shards]
    assert len(set(before)) == 3
    write(tmp_path, [f"{i}\thttp://host/{i if i != 3 else 9}" for i in range(6)])
    same = [source.identity(s) == old for s, old in zip(shards, before, strict=True)]
    assert same == [True, False, True]


def test_files_that_end_early(tmp_path: Path) -> None:
    path = Path(write(tmp_path, ["a\thttp://host/1", "b\thttp://host/2"]))
    source = open_source(str(path), SourceConfig(rows_per_shard=1))
    _, last = source.shards()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="it is empty, or was cut off"):
        next(source.read(last))
    path.write_bytes(b"")
    (empty,) = source.shards()
    assert source.identity(empty).size == 0
    with pytest.raises(DataError, match="it is empty"):
        next(source.read(empty))
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        next(source.read(last))


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


@pytest.mark.parametrize("path", ["busy", "fails-once", "to//other", "to/../relative", "a?b=c"])
def test_what_is_there_in_the_end(server: str, path: str) -> None:
    assert fetch(f"{server}/{path}") == [PICTURE]


@pytest.mark.parametrize(
    "address",
    ["", "dog.jpg", "ftp://host/a", "http://", "http://[::1", "http://a b/", "http://\ud800/"],
)
def test_addresses_that_are_none(address: str) -> None:
    (found,) = fetch(address)
    assert isinstance(found, FetchError) and "\n" not in str(found)


def test_order_and_limits(server: str) -> None:
    config = replace(OPEN, concurrency=6, per_host=2)
    addresses = [f"{server}/{'held' if i % 2 else 'picture'}?{i}" for i in range(20)]
    found = fetch(*addresses, config=config)
    assert found == [b"x" if i % 2 else PICTURE for i in range(20)]
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


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("127.8.8.8", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("::127.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
        ("2001:0:7f00:1::", False),
        ("2001:db8::1", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) == public


def test_a_network_that_is_down_is_not_taken_for_dead_links(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(host: str, *_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "no name servers")

    config = SourceConfig(fetch=replace(OPEN, retries=0))
    few = [f"x\thttp://host{i % 49}.test/{i}" for i in range(100)]
    many = [f"x\thttp://host{i}.test/" for i in range(100)]
    monkeypatch.setattr(socket, "getaddrinfo", down)
    source = open_source(write(tmp_path, few), config)
    assert len(list(source.read(source.shards()[0]))) == 100
    source = open_source(write(tmp_path, many), config)
    with pytest.raises(StorageError, match="50 hosts in a row gave no answer"):
        list(source.read(source.shards()[0]))


def test_retry_after() -> None:
    assert retry_after("") is None and retry_after("soon") is None
    assert retry_after("7") == 7.0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    later = retry_after("Wed, 21 Oct 2999 07:28:00 GMT")
    assert later is not None and later > 1e6
