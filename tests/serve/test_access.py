"""Who is answered: the layer around an application of two routes, asked as by clients anywhere."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from serve import keys
from serve.access import Denied, add_access, admitted, host_name, is_loopback
from serve.keys import Keys, add_key, digest_of
from serve.openapi import describe_api
from serve.problems import add_problem_handlers
from serve.settings import Settings

from .conftest import assert_problem

Ask = Callable[..., httpx.Response]
HERE = ("127.0.0.1", 40_000)


def built(settings: Settings) -> FastAPI:
    api = FastAPI()

    @api.get("/v1/things/{name}")
    async def thing(name: str) -> dict[str, str]:
        return {"name": name}

    @api.post("/v1/explain")
    async def explain(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @api.get("/v1/fault")
    async def fault() -> None:
        raise RuntimeError("the secret path /home/me")

    @api.get("/v1/broken")
    async def broken() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"one"
            raise RuntimeError("the secret path /home/me")

        return StreamingResponse(parts())

    @api.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ready"}

    add_problem_handlers(api)
    describe_api(api)
    add_access(api, settings)
    return api


def asking(settings: Settings) -> Ask:
    """A client of an application, from any address."""
    api = built(settings)

    def ask(
        path: str,
        method: str = "GET",
        *,
        client: tuple[str, int] = HERE,
        base: str = "http://localhost:8000",
        **given: Any,
    ) -> httpx.Response:
        async def answer() -> httpx.Response:
            transport = httpx.ASGITransport(api, raise_app_exceptions=False, client=client)
            async with httpx.AsyncClient(transport=transport, base_url=base) as caller:
                return await caller.request(method, path, **given)

        return asyncio.run(answer())

    return ask


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Without keys."""
    monkeypatch.delenv("DEVIL_API_KEYS", raising=False)
    return asking(Settings())


@pytest.fixture
def key(tmp_path: Path) -> str:
    return add_key(tmp_path / "keys.txt", "alice")


@pytest.fixture
def locked(tmp_path: Path, key: str) -> Ask:
    """With one key."""
    return asking(Settings(keys=str(tmp_path / "keys.txt")))


@pytest.fixture
def lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[[], list[dict[str, Any]]]:
    """What the log of requests says."""
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    caplog.set_level(logging.INFO, "ray.serve")
    return lambda: [
        record.__dict__["request"] for record in caplog.records if "request" in record.__dict__
    ]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "LocalHost:80", "[::1]:8000"])
def test_without_keys_this_machine_is_answered(local: Ask, address: str, host: str) -> None:
    response = local("/v1/things/one", client=(address, 1), headers={"host": host})
    assert response.json() == {"name": "one"}


@pytest.mark.parametrize("address", ["10.0.0.1", "192.0.2.7", "2001:db8::1", "::ffff:10.0.0.1", ""])
def test_without_keys_other_machines_are_told_how_to_set_them(local: Ask, address: str) -> None:
    response = local("/v1/things/one", client=(address, 1))
    assert_problem(response, 401, None, "serve.keys new", "DEVIL_API_KEYS")
    assert response.headers["www-authenticate"] == 'Bearer realm="devil"'
    assert local("/healthz", client=(address, 1)).status_code == 200


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
def test_without_keys_proxies_are_strangers(local: Ask, name: str) -> None:
    assert_problem(local("/v1/things/one", headers={name: "127.0.0.1"}), 401, None, "proxies")


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "", "[::2]"]
)
def test_without_keys_a_foreign_name_of_this_machine_is_refused(local: Ask, host: str) -> None:
    response = local("/v1/things/one", headers={"host": host})
    assert_problem(response, 403, None, "Host", "localhost")


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "", "http://localhost:8001", "http://localhost", "*"]
)
def test_pages_of_others_are_refused(local: Ask, locked: Ask, key: str, origin: str) -> None:
    headers = {"origin": origin, "authorization": f"Bearer {key}"}
    for ask in (local, locked):
        for method in ("GET", "OPTIONS"):
            response = ask("/v1/things/one", method, headers=headers)
            assert_problem(response, 403, None, "another site")
            assert "access-control-allow-origin" not in response.headers
        assert_problem(ask("/healthz", headers={"origin": origin}), 403, None, "another site")


def test_the_own_page_may_ask(local: Ask, locked: Ask, key: str) -> None:
    headers = {"origin": "http://localhost:8000", "authorization": f"Bearer {key}"}
    for ask in (local, locked):
        assert ask("/v1/explain", "POST", headers=headers, content=b"x").json() == {"bytes": 1}
    proxied = {"origin": "https://devil.example", "host": "devil.example"}
    headers = {**proxied, "authorization": f"Bearer {key}", "x-forwarded-for": "192.0.2.7"}
    assert locked("/v1/things/one", headers=headers, client=("192.0.2.7", 1)).status_code == 200


def test_with_keys_everyone_needs_one(locked: Ask, key: str) -> None:
    for client in (HERE, ("192.0.2.7", 1)):
        refused = locked("/v1/things/one", client=client)
        assert_problem(refused, 401, None, "Authorization: Bearer KEY")
        assert refused.headers["www-authenticate"] == 'Bearer realm="devil"'
        headers = {"authorization": f"bearer {key}", "host": "devil.example"}
        assert locked("/v1/things/one", client=client, headers=headers).status_code == 200


@pytest.mark.parametrize("value", ["Bearer nonsense", "Bearer {key}x", "Bearer " + "x" * 10_000])
def test_wrong_keys(locked: Ask, key: str, value: str) -> None:
    refused = locked("/v1/things/one", headers={"authorization": value.format(key=key)})
    assert_problem(refused, 401, None, "mistyped or withdrawn")
    assert refused.headers["www-authenticate"].endswith('error="invalid_token"')
    assert key not in refused.text and "nonsense" not in refused.text


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic {key}", "{key}", "Bearer{key}"])
def test_no_keys_at_all(locked: Ask, key: str, value: str) -> None:
    refused = locked("/v1/things/one", headers={"authorization": value.format(key=key)})
    assert_problem(refused, 401, None, "send `Authorization")


def test_the_hash_of_a_key_and_bytes_beyond_ascii_open_nothing(locked: Ask, key: str) -> None:
    for value in (digest_of(key).encode(), "schlüssel".encode(), b"\xff\xfe"):
        refused = locked("/v1/things/one", headers=[(b"authorization", b"Bearer " + value)])
        assert refused.status_code == 401


def test_a_withdrawn_key_is_refused_without_a_restart(
    locked: Ask, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "LOOK_SECONDS", 0.0)
    headers = {"authorization": f"Bearer {key}"}
    assert locked("/v1/things/one", headers=headers).status_code == 200
    (tmp_path / "keys.txt").write_text("")
    assert locked("/v1/things/one", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "path",
    ["/healthz/", "/healthz/../v1/fault", "/v1", "/pages/x", "/page", "/x/healthz", "/HEALTHZ"],
)
def test_what_is_open_is_open_exactly(locked: Ask, path: str) -> None:
    assert locked(path).status_code == 401
    assert locked("/healthz").json() == {"status": "ready"}
    assert locked("/openapi.json").status_code == 200


def test_every_answer_has_an_id_and_forbids_guessing(local: Ask, lines: Callable) -> None:
    for path in ("/v1/things/one", "/healthz", "/nothing", "/v1/fault"):
        response = local(path)
        assert len(response.headers["x-request-id"]) == 32
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert response.headers["x-frame-options"] == "DENY"
        assert lines()[-1]["id"] == response.headers["x-request-id"]
    assert len({line["id"] for line in lines()}) == 4


def test_ids_of_clients_are_taken_over_if_they_are_sane(local: Ask, lines: Callable) -> None:
    for sane in ("abc-1", "Root=1-67891233-abcdef", "x" * 128):
        response = local("/v1/things/one", headers={"x-request-id": sane})
        assert response.headers.get_list("x-request-id") == [sane]
        assert lines()[-1]["id"] == sane
    for insane in (b"", b"x" * 129, b'a"b', b"a b", b"\xff\xfe", b"a{}", "é".encode()):
        response = local("/v1/things/one", headers=[(b"x-request-id", insane)])
        assert len(response.headers["x-request-id"]) == 32


def test_a_line_for_each_request_and_no_secrets_in_it(
    locked: Ask, key: str, lines: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"authorization": f"Bearer {key}"}
    locked("/v1/things/my-secret-name?token=hidden", headers=headers)
    locked("/v1/explain", "POST", headers=headers, content=b"a body of mine")
    locked("/v1/explain", "POST", headers={"authorization": "Bearer guessed"}, content=b"mine")
    locked("/nothing", "BREW", headers=headers)
    found = lines()
    assert [set(line) for line in found] == [
        {"id", "method", "route", "status", "seconds", "bytes", "key"}
    ] * 4
    rows = [tuple(line[n] for n in ("method", "route", "status", "key")) for line in found]
    assert rows == [
        ("GET", "/v1/things/{name}", 200, "alice"),
        ("POST", "/v1/explain", 200, "alice"),
        ("POST", "none", 401, None),
        ("OTHER", "none", 404, "alice"),
    ]
    assert found[0]["bytes"] == len(b'{"name":"my-secret-name"}') and found[0]["seconds"] > 0
    for secret in (key, "guessed", "my-secret-name", "hidden", "mine"):
        assert secret not in caplog.text


def test_faults_of_ours_leave_no_trace_outside_and_one_inside(
    local: Ask, lines: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    response = local("/v1/fault", headers={"x-request-id": "mine"})
    assert_problem(response, 500, None)
    assert "secret" not in response.text and "secret path" in caplog.text
    assert "request mine failed" in caplog.text
    assert lines()[-1]["status"] == 500
    assert local("/v1/broken").text == "one"
    assert (lines()[-1]["route"], lines()[-1]["status"]) == ("/v1/broken", 500)


def test_clients_that_leave_are_written_down(lines: Callable) -> None:
    async def leave() -> None:
        async def receive() -> dict[str, Any]:
            raise asyncio.CancelledError

        async def send(message: object) -> None:
            raise AssertionError

        scope = {"type": "http", "method": "POST", "path": "/v1/explain", "root_path": ""}
        scope |= {"headers": [(b"host", b"localhost")], "client": HERE, "query_string": b""}
        await built(Settings())(scope, receive, send)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(leave())
    assert (lines()[-1]["status"], lines()[-1]["bytes"]) == (499, 0)


def test_web_sockets_are_closed(local: Ask) -> None:
    sent: list[dict[str, Any]] = []

    async def knock() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        await built(Settings())({"type": "websocket", "path": "/v1/explain"}, send, send)  # type: ignore[arg-type]

    asyncio.run(knock())
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_an_application_below_a_prefix_is_as_open_and_as_shut() -> None:
    def scope(path: str) -> dict[str, Any]:
        return {"type": "http", "path": path, "root_path": "/below", "headers": [], "client": None}

    assert admitted(scope("/below/healthz"), Keys("", {})) is None
    with pytest.raises(Denied):
        admitted(scope("/below/v1/models"), Keys("", {}))


def test_the_document_names_the_key(local: Ask) -> None:
    document = local("/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    guarded = document["paths"]["/v1/explain"]["post"]
    assert guarded["security"] == [{"key": []}, {}]
    assert {"401", "403"} <= set(guarded["responses"])
    assert "security" not in document["paths"]["/healthz"]["get"]
    assert "401" not in document["paths"]["/healthz"]["get"]["responses"]


def test_names_of_this_machine() -> None:
    assert [host_name(host) for host in ("a:1", "[::1]:80", "[::1", "a", "")] == [
        *("a", "::1", "::1", "a", "")
    ]
    assert is_loopback("localhost") and is_loopback("127.1.2.3") and is_loopback("::1")
    assert not any(is_loopback(name) for name in ("127.1", "0.0.0.0", "2130706433", "::", "local"))
