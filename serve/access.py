"""Who may ask, and what is written down of each request: one ASGI layer around every route.

With keys (`serve.keys`) a request must carry one: `Authorization: Bearer KEY`. Without, clients on
this machine alone are answered, and only under a loopback name: a page of the web whose name was
turned to 127.0.0.1 (DNS rebinding) is none. Pages of other origins are refused either way; there is
no CORS. What shows nothing of pictures or models stays open (`OPEN`).

Bodies are the business of `serve.body`, connections that of Ray's proxy.
"""

import ipaddress
import logging
import re
import time
import uuid
from typing import Any

import ray.serve
import ray.serve.exceptions
import ray.serve.schema
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import metrics
from serve.keys import ENVIRONMENT, Keys
from serve.problems import internal_error, problem_response, problem_responses, route_of
from serve.schemas import Refusal
from serve.settings import Settings

OPEN = ("", "/", "/healthz", "/openapi.json", "/docs")
"""Paths that need no key: probes of orchestrators, the API's description, and the page."""
OPEN_FOLDERS = ("/page/", "/docs/files/")
"""The page's own files, and those of the API's description."""
REQUEST_ID = "x-request-id"
SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
"""Ids of clients that are taken over; any other is replaced."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
"""Headers of proxies, which stand between this machine and somebody else's."""
LONGEST_KEY = 256
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
"""On every response: nothing is to be read, or guessed at, by pages of others."""
CHALLENGE = 'Bearer realm="devil"'
GONE = 499
"""Written down for a request whose client left before the answer."""

logger = logging.getLogger("ray.serve")


class Denied(Exception):
    """A request that is not answered, and why."""

    def __init__(self, refusal: Refusal, challenge: str | None = None) -> None:
        super().__init__(refusal)
        self.refusal = refusal
        self.headers = {"WWW-Authenticate": challenge} if challenge else {}


def admitted(scope: Scope, keys: Keys) -> str | None:
    """The name of the key that a request may be answered by; None: it needs none.

    Raises:
        Denied: it may not be answered.
    """
    headers = Headers(scope=scope)
    check_origin(headers)
    if is_open(scope["path"].removeprefix(scope.get("root_path", ""))):
        return None
    if keys.configured:
        return _owner(headers, keys)
    check_local(scope, headers)
    return None


def is_open(path: str) -> bool:
    """Whether a path, as routes have it, needs no key."""
    return path in OPEN or path.startswith(OPEN_FOLDERS)


def check_origin(headers: Headers) -> None:
    """Refuse what a page of another origin sends.

    Raises:
        Denied: 403.
    """
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower():
        raise Denied(
            Refusal(403, "Origin: a page of another site may not ask; ask from a program instead.")
        )


def _owner(headers: Headers, keys: Keys) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise Denied(
            Refusal(401, "This service asks for a key; send `Authorization: Bearer KEY`."),
            CHALLENGE,
        )
    owner = keys.owner(key.strip()) if len(key) <= LONGEST_KEY else None
    if owner is None:
        raise Denied(
            Refusal(401, "The key is none of this service's; it was mistyped or withdrawn."),
            f'{CHALLENGE}, error="invalid_token"',
        )
    return owner


def check_local(scope: Scope, headers: Headers) -> None:
    """Refuse clients that are not on this machine.

    Raises:
        Denied: 401 for another machine, 403 for a foreign name of this one.
    """
    client = scope.get("client")
    if client is None or not is_loopback(client[0]) or any(name in headers for name in FORWARDED):
        raise Denied(
            Refusal(
                401,
                "No keys are set, so only clients on the server's own machine are answered, and "
                "no proxies. For others, set keys: `python -m serve.keys new NAME --file "
                f"keys.txt`, then start with keys=keys.txt, or set {ENVIRONMENT}.",
            ),
            CHALLENGE,
        )
    host = headers.get("host", "")
    if not is_loopback(host_name(host)):
        raise Denied(
            Refusal(
                403,
                f"Host is {host[:100]!r}; without keys, ask for localhost or 127.0.0.1, or set "
                "keys (see docs/SERVICE.md).",
            )
        )


def host_name(host: str) -> str:
    """A Host header without its port and the brackets of IPv6."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def is_loopback(name: str) -> bool:
    """Whether an address, or the name of a host, is one of this machine alone."""
    if name.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


class Access:
    """The layer: gives each request an id, admits it or not, and writes a line about it."""

    def __init__(self, app: ASGIApp, *, keys: Keys) -> None:
        self.app = app
        self.keys = keys
        self.behind_ray = _behind_ray()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = _Visit(scope, send, behind_ray=self.behind_ray)
        try:
            await self._answer(visit, scope, receive)
        finally:
            visit.write_down()

    async def _answer(self, visit: "_Visit", scope: Scope, receive: Receive) -> None:
        try:
            visit.key = admitted(scope, self.keys)
            await self.app(scope, receive, visit.send)
        except Denied as denied:
            response = problem_response(denied.refusal, denied.headers)
            await response(scope, receive, visit.send)
        except Exception as error:
            logger.error("request %s failed", visit.id, exc_info=error)
            if visit.status is not None:  # too late for another answer
                visit.status, visit.ended = 500, True
                raise
            await problem_response(internal_error())(scope, receive, visit.send)


class _Visit:
    """One request while it is answered."""

    def __init__(self, scope: Scope, send: Send, *, behind_ray: bool) -> None:
        given = Headers(scope=scope).get(REQUEST_ID, "")
        sane = SANE_ID.fullmatch(given) is not None
        self.id = given if sane else uuid.uuid4().hex
        self.key: str | None = None
        self.status: int | None = None
        self.ended = False
        self._bytes = 0
        self._scope, self._send = scope, send
        # Ray's proxy puts the id that it passes on into the response itself.
        self._told = behind_ray and sane
        self._started = time.perf_counter()

    async def send(self, message: Message) -> None:
        """Pass on a part of the response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS)
            if not self._told:
                headers[REQUEST_ID] = self.id
        elif message["type"] == "http.response.body":
            self._bytes += len(message.get("body", b""))
            self.ended = not message.get("more_body", False)
        await self._send(message)

    def write_down(self) -> None:
        """Log a line, and count; never bodies, addresses, or keys."""
        seconds = time.perf_counter() - self._started
        method = self._scope["method"]
        method = method if method in METHODS else "OTHER"
        route = route_of(self._scope)
        status = self.status if self.status is not None and self.ended else GONE
        line: dict[str, Any] = {
            "id": self.id,
            "method": method,
            "route": route,
            "status": status,
            "seconds": round(seconds, 6),
            "bytes": self._bytes,
            "key": self.key,
        }
        logger.info("%s %s %d %.3f s", method, route, status, seconds, extra={"request": line})
        metrics.requested(route, method, status, seconds)


def _behind_ray() -> bool:
    """Whether this is a replica, which Ray's proxy stands before."""
    try:
        ray.serve.get_replica_context()
    except ray.serve.exceptions.RayServeException:
        return False
    return True


def logging_of(settings: Settings) -> ray.serve.schema.LoggingConfig:
    """How replicas write logs; Ray puts the request's id on every line, in all of them.

    Ray's own line for each request is left out, for the layer writes one.
    """
    return ray.serve.schema.LoggingConfig(
        encoding=settings.log_format.upper(), enable_access_log=False
    )


def add_access(api: FastAPI, settings: Settings) -> None:
    """Put the layer around all routes of `api`, and into its OpenAPI document, whose last it is.

    Raises:
        ConfigError: the keys are not right.
    """
    api.add_middleware(Access, keys=Keys(settings.keys))
    described = api.openapi

    def document() -> dict[str, Any]:
        found = described()
        if "securitySchemes" not in found["components"]:
            _describe(found)
        return found

    api.openapi = document


def _describe(document: dict[str, Any]) -> None:
    scheme = {"type": "http", "scheme": "bearer", "description": "An API key, if keys are set."}
    document["components"]["securitySchemes"] = {"key": scheme}
    denials = {str(status): it for status, it in problem_responses(401, 403).items()}
    busy = {str(status): it for status, it in problem_responses(408, 429, 503).items()}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"] = busy | operation["responses"]  # of Ray's proxy
            if not is_open(path):
                operation["security"] = [{"key": []}, {}]
                operation["responses"] = denials | operation["responses"]
