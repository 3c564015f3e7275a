"""In front of Ray's HTTP proxy: requests that it would stumble over, and answers of its own.

The proxy reads headers of its own making from whoever sends them: one sets how long it waits, and
bytes that are no UTF-8 in an id end in an error 500. `Front` takes these away before the proxy
sees them, and turns the proxy's plain-text errors into problem documents; while no application is
there yet, as when the service starts again, a 404 becomes a 503. Ray puts it there if

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.front:layers

is in the environment in which Ray starts, as `make serve` and the cluster's manifests have it. The
application works without; who may ask is checked behind the proxy (`serve.access`) either way.
"""

import json

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.access import HEADERS, REQUEST_ID, SANE_ID
from serve.problems import internal_error, problem_response
from serve.schemas import Refusal

OF_RAY = {
    "serve_multiplexed_model_id",
    "x_request_disconnect_disabled",
    "x_request_timeout_seconds",
    "x_session_id",
}
"""Headers that steer Ray's proxy, with `_` for `-`, which it takes alike."""
OWN_PATHS = "/-/"
"""Ray's own: whether the proxy lives, and which applications it knows; programs read them."""
ROUTES = OWN_PATHS + "routes"
DETAILS = {
    404: "There is no application at this address.",
    408: "The request took too long; try again with less.",
    429: "Too many requests are waiting; try again later.",
    503: "The application is not ready to answer; try again later.",
}
"""What the proxy's own refusals say; its words name actors and replicas."""


class Front:
    """The layer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        scope = {**scope, "headers": cleaned(scope["headers"])}
        if scope["type"] == "http" and not scope["path"].startswith(OWN_PATHS):
            send = _Rewriting(self.app, scope, receive, send)
        await self.app(scope, receive, send)


def cleaned(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers without those that Ray's proxy should not hear from clients."""
    kept = []
    ids = sum(name.lower() == REQUEST_ID.encode() for name, _ in headers)
    for name, value in headers:
        plain = name.decode("latin-1").lower()
        if plain.replace("-", "_") in OF_RAY:
            continue
        if plain == REQUEST_ID and (ids > 1 or not SANE_ID.fullmatch(value.decode("latin-1"))):
            continue
        if plain.isascii():
            kept.append((name, value))
    return kept


class _Rewriting:
    """Passes on a response, or a problem document in the place of the proxy's plain text."""

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        self._app, self._scope, self._receive, self._send = app, scope, receive, send
        self._replaced = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = Headers(raw=message["headers"])
            plain = headers.get("content-type", "").startswith("text/plain")
            self._replaced = message["status"] >= 400 and plain
            if self._replaced:
                await self._answer(message["status"], headers)
        if not self._replaced:
            await self._send(message)

    async def _answer(self, status: int, headers: Headers) -> None:
        if status == 404 and not await self._is_routed():
            status = 503
        if status >= 500 and status not in DETAILS:
            refusal = internal_error()
        else:
            refusal = Refusal(status, DETAILS.get(status, "The request was refused."))
        kept = {REQUEST_ID: headers[REQUEST_ID]} if REQUEST_ID in headers else {}
        response = problem_response(refusal, HEADERS | kept)
        await response(self._scope, self._receive, self._send)

    async def _is_routed(self) -> bool:
        """Whether the proxy knows any application; it says so under an address of its own."""
        status, body = 0, b""

        async def send(message: Message) -> None:
            nonlocal status, body
            status = message.get("status", status)
            body += message.get("body", b"")

        path = self._scope.get("root_path", "") + ROUTES
        asked = {**self._scope, "method": "GET", "path": path, "headers": []}
        await self._app(asked, self._receive, send)
        return status == 200 and bool(json.loads(body))


def layers() -> list[Middleware]:
    """What Ray asks for."""
    return [Middleware(Front)]
