"""A web server on this machine that does what servers do: by path, and counting."""

import gzip
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from devil.config import FetchConfig

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
        with suppress(OSError):  # the client has gone
            self.answer(self.path.strip("/").partition("?")[0])

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
        elif name == "busy-for-ages":
            self.give(429, {"Retry-After": "Mon, 01 Jan 99999999999 00:00:00 GMT"})
        elif name == "fails-once" and first:
            self.give(500, {})
        elif name.startswith("to/"):
            self.give(302, {"Location": name.removeprefix("to/")})
        elif name.startswith("encoded/"):
            encoding = {"Content-Encoding": name.removeprefix("encoded/")}
            self.give(200, encoding, gzip.compress(PICTURE) if "gzip" in name else PICTURE)
        elif name == "loop":
            self.give(301, {"Location": "/loop"})
        elif name == "relative":
            self.give(302, {"Location": "other"})
        elif name == "held":
            # Counted until before the answer: with its last byte the client may ask again.
            with Handler.lock:
                Handler.at_once += 1
                Handler.most_at_once = max(Handler.most_at_once, Handler.at_once)
            time.sleep(0.1)
            with Handler.lock:
                Handler.at_once -= 1
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


@contextmanager
def serving() -> Iterator[str]:
    """Its address while the block lasts."""
    Handler.asked, Handler.hosts, Handler.lock = Counter(), [], threading.Lock()
    Handler.at_once, Handler.most_at_once, Handler.ended = 0, 0, threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as here:
        thread = threading.Thread(target=here.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{here.server_port}"
        Handler.ended.set()
        here.shutdown()
        thread.join()
