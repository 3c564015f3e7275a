"""Hostile requests, whole: lines, headers, chunks, paths, and clients that dawdle or leave."""

import random
from collections.abc import Callable, Iterator

from benchmarks.hostile_bodies import BODIES, Body, document, form_of_fields
from benchmarks.raw_http import Sent

POSTS = ("/v1/explain", "/v1/caption", "/v1/saliency")
PATHS = (
    *("/v1/models/../../etc/passwd", "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/v1/models/%00"),
    *("/v1/models/nobody", "/v1/models/%ff%fe", "/v1/models/" + "m" * 8000, "//v1//models"),
    *("/v1/explanations/../../../etc/passwd.png", "/v1/explanations/..%2f..%2fx.html", "/v1//"),
    *("/v1/explanations/%2e%2e.png", "/v1/explanations/nobody.png", "/v1/explanations/nobody"),
    *("/v1/explanations/" + "e" * 5000 + ".html", "/v1/explanations/a%0d%0aSet-Cookie:x.png"),
    *("/v1/audits/../..", "/v1/audits/nobody", "/v1/audits/nobody/files/..%2f..%2fetc%2fpasswd"),
    *("/v1/audits?limit=-1", "/v1/audits?limit=99999999999999999999", "/v1/audits?before=%00"),
    *("/v1/audits/nobody/files/index.html", "/v1/audits/%2e%2e/files/x", "/v1/audits?limit=NaN"),
    *("/page/../serve/app.py", "/page/%2e%2e/app.py", "/page/..%5capp.py", "/page//etc/passwd"),
    *("/page/%2fetc%2fpasswd", "/page/.", "/page/", "/page/%00", "/page/nobody.js", "/.git/config"),
    *("/-/routes/..", "/docs/../v1/models", "/openapi.json/", "/healthz;x=y", "/%", "/%zz", "/?"),
    *(
        "/\xff\xfe",
        "http://other.example/v1/models",
        "*",
        "/v1/models#x",
        "/v1/models?" + "a=b&" * 3000,
    ),
)
METHODS = ("GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "BREW", "post")
HEADERS = (
    *(b"X-Request-Id: \xff\xfe", b"X-Request-Id: a\tb", b"X-Request-Id: " + b"i" * 9000),
    *(b"X-Request-Id: one\r\nX-Request-Id: two", b"X-Request-Timeout-Seconds: 0.000001"),
    *(b"X-Request-Timeout-Seconds: \xff", b"X-Request-Disconnect-Disabled: ?1"),
    *(b"serve_multiplexed_model_id: \xff", b"serve-multiplexed-model-id: nobody"),
    *(
        b"X-Session-Id: \xff",
        b"traceparent: \xff",
        b"Origin: http://other.example",
        b"Origin: \xff",
    ),
    *(b"Host: other.example", b"Host: \xff", b"Host:", b"Authorization: Bearer \xff"),
    *(
        b"Authorization: " + b"B" * 9000,
        b"Accept: \xff",
        b"Accept: */*;q=nan",
        b"Range: bytes=0-,-1",
    ),
    *(b"Cookie: " + b"c=d;" * 2000, b"X-Forwarded-For: 127.0.0.1, \xff", b"Forwarded: for=unknown"),
    *(b"Expect: 100-continue", b"Expect: a miracle", b"Content-Encoding: gzip", b"TE: trailers"),
    *(b"Upgrade: websocket\r\nConnection: Upgrade", b"Upgrade: h2c\r\nConnection: Upgrade"),
    *(b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\nUpgrade: websocket",),
    *(b"If-None-Match: *", b"If-Modified-Since: yesterday", b"X-HTTP-Method-Override: DELETE"),
    *(b"\r\n".join(b"X-%d: y" % i for i in range(2000)), b"Accept: application/x-ndjson"),
)
LINES = (
    *(b"GET\r\n\r\n", b"\r\n\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"),
    *(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9),
    *(b"GET / HTTP/1.1\nHost: localhost\n\n", b"GET  /  HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    *(b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET / HTTP/1.1\r\n Host: x\r\n\r\n"),
    *(b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", b"GET / HTTP/1.1\r\n: x\r\n\r\n"),
    *(b"GET / HTTP/1.1\r\nHost: localhost\r\nX\xff\xfe: y\r\n\r\n", b"\x00" * 500),
    *(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n", b"GET /healthz\r\n\r\n"),
    *(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n", b"POST / HTTP/1.1\r\n"),
)
LENGTHS = (
    *(b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length: 1e3"),
    *(b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 0x10", b"Content-Length: +7"),
    *(b"Content-Length: 9\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked"),
    *(
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"Transfer-Encoding: \x0bchunked",
    ),
    *(b"Content-Length: 1000000000", b"Content-Length:", b"Transfer-Encoding: identity"),
)
CHUNKS = (
    *(b"zz\r\nhello\r\n0\r\n\r\n", b"FFFFFFFFFFFFFFFFFF\r\nhello", b"-5\r\nhello\r\n0\r\n\r\n"),
    *(b"5;" + b"e" * 20_000 + b"\r\nhello\r\n0\r\n\r\n", b"5\r\nhelloX\r\n0\r\n\r\n", b"\r\n\r\n"),
    *(b"5\nhello\n0\n\n", b"0\r\nTrailer: \xff\r\n\r\n", b"1\r\n{\r\n" * 2000 + b"0\r\n\r\n"),
    *(b"7FFFFFFF\r\n" + b"x" * 1000, b"5\r\nhello\r\n", b"0" * 5000 + b"\r\n\r\n"),
)


def head(method: str, path: str, *lines: bytes) -> bytes:
    """The beginning of a request, which asks to be the last on its connection."""
    first = f"{method} {path} HTTP/1.1\r\n".encode("latin-1")
    own = [] if any(line.lower().startswith(b"host:") for line in lines) else [b"Host: localhost"]
    if not any(b"connection:" in line.lower() for line in lines):
        own.append(b"Connection: close")
    return first + b"\r\n".join([*own, *lines]) + b"\r\n\r\n"


def post(path: str, body: Body, *lines: bytes) -> bytes:
    """A whole request with a body."""
    kind, data = body
    length = f"Content-Length: {len(data)}".encode()
    return head("POST", path, b"Content-Type: " + kind.encode("latin-1"), length, *lines) + data


def body(rng: random.Random) -> Sent:
    """A well-formed request whose body is wrong."""
    return Sent(pieces=(post(rng.choice(POSTS), rng.choice(BODIES)(rng)),))


def model(rng: random.Random) -> Sent:
    """A good request to a model that nobody has."""
    names = [b"nobody", b"../../etc", b"", b"x" * 5000, b"\x00", b"a/b", b"http://127.0.0.1/", b"*"]
    kind, data = form_of_fields(rng)
    part = b'--frontier\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
    return Sent(
        pieces=(post(rng.choice(POSTS), (kind, part + rng.choice(names) + b"\r\n" + data)),)
    )


def path(rng: random.Random) -> Sent:
    """A path that leads out of the tree, to nobody, or nowhere."""
    method = rng.choice(["GET", "GET", "POST", "DELETE", "HEAD"])
    return Sent(pieces=(head(method, rng.choice(PATHS)),))


def method(rng: random.Random) -> Sent:
    """A method that the path does not have."""
    chosen = rng.choice(["/v1/explain", "/v1/models", "/healthz", "/", "/v1/audits", "/docs"])
    # CONNECT begins a tunnel: what follows is nobody's request, and gets no answer.
    name = rng.choice(METHODS)
    return Sent(pieces=(head(name, chosen),), whole=name not in ("CONNECT", "post"))


def header(rng: random.Random) -> Sent:
    """Headers of the wrong kind, or too many."""
    lines = rng.sample(HEADERS, rng.randint(1, 3))
    # uvicorn hands what asks for a WebSocket to another parser, which may wait for more.
    whole = not any(b"Upgrade: websocket" in line for line in lines)
    if rng.random() < 0.5:
        place = rng.choice(["/v1/models", "/healthz", "/"])
        return Sent(pieces=(head("GET", place, *lines),), whole=whole)
    return Sent(pieces=(post(rng.choice(POSTS), document(rng), *lines),), whole=whole)


def line(rng: random.Random) -> Sent:
    """What is hardly HTTP."""
    return Sent(pieces=(rng.choice([*LINES, rng.randbytes(rng.randint(1, 300))]),), whole=False)


def length(rng: random.Random) -> Sent:
    """Lengths that lie."""
    start = head("POST", rng.choice(POSTS), b"Content-Type: application/json", rng.choice(LENGTHS))
    return Sent(pieces=(start + document(rng)[1],), whole=False)


def chunks(rng: random.Random) -> Sent:
    """Chunks that are none."""
    kind = rng.choice([b"application/json", b"multipart/form-data; boundary=frontier"])
    lines = b"Content-Type: " + kind, b"Transfer-Encoding: chunked"
    start = head("POST", rng.choice(POSTS), *lines)
    return Sent(pieces=(start, rng.choice(CHUNKS)), whole=False)


def slow(rng: random.Random) -> Sent:
    """A request that comes in drips, and does not end."""
    request = post(rng.choice(POSTS), rng.choice(BODIES)(rng))
    end = rng.randrange(1, len(request))
    pieces = tuple(request[i : i + 1 + end // 20] for i in range(0, end, 1 + end // 20))
    return Sent(pieces=pieces, pause=0.05, manner=rng.choice(["waits", "leaves"]), whole=False)


def leaves(rng: random.Random) -> Sent:
    """A client that is gone before the answer, or in the middle of its own request."""
    request = post(rng.choice(POSTS), rng.choice(BODIES)(rng))
    end = rng.choice([len(request), rng.randrange(len(request))])
    return Sent(pieces=(request[:end],), manner=rng.choice(["leaves", "resets"]))


ATTACKS: dict[str, tuple[int, Callable[[random.Random], Sent]]] = {
    "body": (40, body),
    "model": (8, model),
    "path": (14, path),
    "method": (6, method),
    "header": (14, header),
    "line": (5, line),
    "length": (5, length),
    "chunks": (5, chunks),
    "slow": (3, slow),
    "leaves": (8, leaves),
}
"""Weight and maker of each kind."""


def attacks(seed: int, count: int) -> Iterator[tuple[str, Sent]]:
    """Kinds and requests, always the same for a seed."""
    rng = random.Random(seed)
    names, weights = list(ATTACKS), [weight for weight, _ in ATTACKS.values()]
    for name in rng.choices(names, weights, k=count):
        yield name, ATTACKS[name][1](rng)
