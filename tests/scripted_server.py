"""A web server on this machine that answers as a script says, and remembers what it was asked."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from devil.explanation import Caption, Explanation, LayerExplanation


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What is answered to one request."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    """The connection ends after so many bytes of the body; -1: before any answer."""


class Asked(NamedTuple):
    """A request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


MODEL = {
    "id": "a/b",
    "version": "01",
    "backbone": "timm:x",
    "language_model": "y",
    "layers": [{"name": "layer4", "channels": 8, "grid": [2, 3]}],
    "scores": {"cider": 0.3},
    "default": True,
    "later": 1,
}
"""As a list of models describes one, and a key of a later version."""

Script = Sequence[Reply] | Callable[[Asked], Reply]


class Server(ThreadingHTTPServer):
    """Answers by a function of the request, or one reply after the other."""

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.asked: list[Asked] = []
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go when they want to."""

    def reply(self, asked: Asked) -> Reply:
        """What comes next; beyond the script's end an error that clients do not repeat."""
        with self.lock:
            self.asked.append(asked)
            number = len(self.asked)
        if callable(self.script):
            return self.script(asked)
        return self.script[number - 1] if number <= len(self.script) else Reply(status=501)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.server.reply(Asked(self.command, self.path, headers, body))
        if reply.cut == -1:
            self.close_connection = True
            return
        with suppress(OSError):  # the client has gone
            self.give(reply)
        self.close_connection = self.close_connection or reply.cut is not None

    def give(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body[: reply.cut])

    do_GET = do_POST = do_DELETE = handle_any

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def scripted(script: Script) -> Iterator[Server]:
    """A server while the block lasts."""
    with Server(script) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def document(body: Any, **headers: str) -> Reply:
    """A JSON answer."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(
        body=json.dumps(body).encode(), headers={"Content-Type": "application/json", **given}
    )


def problem(status: int, detail: str = "no", field: str | None = None, **headers: str) -> Reply:
    """A problem document."""
    body = {"type": "about:blank", "title": "x", "status": status, "detail": detail, "field": field}
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    kind = {"Content-Type": "application/problem+json"}
    return Reply(status=status, body=json.dumps(body).encode(), headers={**kind, **given})


def lines(*documents: Any) -> bytes:
    """NDJSON."""
    return b"".join(json.dumps(d).encode() + b"\n" for d in documents)


def small_explanation(size: tuple[int, int], text: str = "a dog") -> Explanation:
    """An explanation of a picture of this size."""
    caption = Caption(text=text, log_probability=-1.5, tokens=3)
    layer = LayerExplanation(
        layer="layer4", grid=(1, 2), caption=caption, captions=None, saliency={"dog": [[0.5, -1.0]]}
    )
    return Explanation(
        image_size=size,
        region=(0.0, 0.0, float(size[0]), float(size[1])),
        layers={"layer4": layer},
        queries=("dog",),
        calibration="pmi",
        model="tiny",
        version="0123",
    )


def form(asked: Asked) -> Mapping[str, list[bytes]]:
    """Fields of a multipart request."""
    head = f"Content-Type: {asked.headers['content-type']}\r\n\r\n".encode()
    found: dict[str, list[bytes]] = {}
    for part in BytesParser().parsebytes(head + asked.body).get_payload():
        name = part.get_param("name", header="content-disposition")
        found.setdefault(name, []).append(part.get_payload(decode=True))
    return found


def audit(state: str = "queued", **values: Any) -> dict[str, Any]:
    """The document of an audit."""
    return {"id": "a1", "state": state, "progress": {"pictures": 4}, **values}


def finished(**results: Any) -> Reply:
    """An audit with results."""
    files = "/v1/audits/a1/files/"
    found = {
        "report": files + "index.html",
        "parts": [files + "part-0.parquet"],
        "errors": [files + "errors/part-0.parquet"],
    }
    return document(audit("finished", results={**found, **results}))
