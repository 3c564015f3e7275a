"""The layer in front of Ray's proxy, around a proxy that says what the layer lets through."""

import asyncio
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.front import Front, cleaned, layers


def answered(
    inner: ASGIApp, headers: list[tuple[bytes, bytes]] | None = None, path: str = "/v1/explain"
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what a client gets."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "headers": headers or []}
    asyncio.run(Front(inner)(scope, receive, send))
    start, *parts = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], found, b"".join(part["body"] for part in parts)


def giving(response: Response, routes: Response | None = None) -> ASGIApp:
    """A proxy that knows one application, or what `routes` says."""
    routes = routes or JSONResponse({"/": "devil"})

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        given = routes if scope["path"] == "/-/routes" else response
        await given(scope, receive, send)

    return proxy


def test_what_steers_the_proxy_is_not_heard() -> None:
    kept = [(b"host", b"localhost"), (b"x-request-id", b"abc"), (b"authorization", b"Bearer \xff")]
    lost = [
        (b"x-request-timeout-seconds", b"0.001"),
        (b"X-Request-Disconnect-Disabled", b"?1"),
        (b"serve-multiplexed-model-id", b"\xff"),
        (b"serve_multiplexed_model_id", b"a"),
        (b"x-session-id", b"\xff"),
        (b"x-\xff", b"a"),
    ]
    assert cleaned([*lost, *kept]) == kept


@pytest.mark.parametrize("value", [b"\xff\xfe", b"a b", b"", b"x" * 129, b'"'])
def test_ids_that_are_no_ids_are_not_passed_on(value: bytes) -> None:
    assert cleaned([(b"x-request-id", value)]) == []
    assert cleaned([(b"x-request-id", b"a"), (b"X-Request-Id", b"a")]) == []


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (404, b"no application"),
        (408, b"too long"),
        (429, b"waiting"),
        (500, b"log has the reason"),
        (503, b"not ready"),
        (418, b"refused"),
    ],
)
def test_plain_errors_become_problem_documents(status: int, says: bytes) -> None:
    plain = PlainTextResponse(
        "ActorDied: Replica x at /home/me", status, {"x-request-id": "abc", "retry-after": "7"}
    )
    found, headers, body = answered(giving(plain))
    assert found == status and says in body and b"/home" not in body
    assert headers["content-type"] == "application/problem+json"
    assert headers["x-request-id"] == "abc" and int(headers["content-length"]) == len(body)
    assert ("retry-after" in headers) == (status in (429, 503))
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "routes",
    [JSONResponse({}), PlainTextResponse("Route table is not populated yet.", 503)],
    ids=["none", "not yet"],
)
def test_no_application_yet_is_no_404(routes: Response) -> None:
    """Whoever deletes something takes a 404 for success."""
    missing = PlainTextResponse("Path '/v1/audits/a1' not found. Ping", 404)
    found, headers, body = answered(giving(missing, routes))
    assert found == 503 and b"not ready" in body and int(headers["retry-after"]) > 0


def test_all_else_passes_as_it_is() -> None:
    for response in (
        JSONResponse({"a": 1}, 422),
        JSONResponse({"a": 1}, 500),
        PlainTextResponse("fine"),
        Response(b"\x00", media_type="image/png"),
    ):
        found, headers, body = answered(giving(response))
        assert (found, body) == (response.status_code, response.body)
        assert headers["content-type"] == response.headers["content-type"]
    health = PlainTextResponse("starting", 503)
    assert answered(giving(health), path="/-/healthz")[2] == b"starting"


def test_ray_can_be_told_of_it() -> None:
    (layer,) = layers()
    assert layer.cls is Front
