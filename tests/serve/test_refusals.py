"""Requests that get no explanation over HTTP, and the problem documents that say why."""

import asyncio
import base64
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray.serve
import ray.serve.handle
from PIL import Image
from tiny import encoded

from serve.app import Ingress, app
from serve.schemas import ExplainOptions
from serve.settings import Settings

from .conftest import MAX_REQUEST_BYTES, PATH, SETTINGS, assert_problem, post_all


@pytest.fixture(scope="module")
def impatient(
    address: str, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Where an application answers that lets nobody wait."""
    state = str(tmp_path_factory.mktemp("state"))
    settings = Settings(**SETTINGS | {"model": str(model_folder), "max_wait_seconds": 0.02})
    application = app(settings.model_copy(update={"state": state}))
    ray.serve.run(application, name="impatient", route_prefix="/impatient")
    yield f"{address}/impatient"
    ray.serve.delete("impatient")


def test_more_requests_than_can_be_answered_soon(impatient: str, jpeg: bytes) -> None:
    async def post_all_and_check_health() -> tuple[list[httpx.Response], httpx.Response]:
        posts = asyncio.create_task(post_all(impatient, [(jpeg, {})] * 48))
        async with httpx.AsyncClient(timeout=120) as other:
            await asyncio.sleep(0.5)
            health = await other.get(f"{impatient}/healthz")
        return await posts, health

    responses, health = asyncio.run(post_all_and_check_health())
    assert health.json()["status"] in ("busy", "ready"), health.text
    statuses = {response.status_code for response in responses}
    assert statuses == {200, 429}
    refused = next(response for response in responses if response.status_code == 429)
    assert_problem(refused, 429, None, "wait")
    assert int(refused.headers["retry-after"]) >= 1
    alone = httpx.post(
        f"{impatient}{PATH}", files={"image": jpeg}, data={"dense": False}, timeout=120
    )
    assert alone.status_code == 200


def slow_explainer() -> type:
    """A class that travels to Ray's workers by value, for they cannot import this file."""

    class Slow:
        """An explainer that never has done with queries."""

        def __init__(self, explainer: ray.serve.handle.DeploymentHandle) -> None:
            self._explainer = explainer

        async def explain(
            self, model: str, image: bytes, options: ExplainOptions, owner: str
        ) -> Any:
            """Answer what has no queries."""
            if options.queries:
                await asyncio.Event().wait()
            return await self._explainer.explain.remote(model, image, options, owner)

    return Slow


@pytest.fixture(scope="module")
def hurried(
    address: str, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Where another ingress answers, which gives requests up early, for two requests at a time."""
    explainer = ray.serve.get_deployment_handle("Explainer", app_name="default")
    free = {"num_cpus": 0}
    slow = ray.serve.deployment(slow_explainer(), max_ongoing_requests=2, ray_actor_options=free)
    ingress = ray.serve.deployment(Ingress, ray_actor_options=free)
    state = str(tmp_path_factory.mktemp("state"))
    settings = Settings(model=str(model_folder), state=state, timeout_seconds=2)
    application = ingress.bind(settings, slow.bind(explainer))
    ray.serve.run(application, name="hurried", route_prefix="/hurried")
    yield f"{address}/hurried"
    ray.serve.delete("hurried")


def test_requests_that_take_too_long(hurried: str, jpeg: bytes) -> None:
    for response in asyncio.run(post_all(hurried, [(jpeg, {"queries": ["red"]})] * 2)):
        assert_problem(response, 503, None, "No answer within 2 s")
        assert int(response.headers["retry-after"]) >= 1
    brief = {"layers": ["layer4"], "dense": False, "max_new_tokens": 1}
    for _ in range(120):  # a busy machine may need several attempts
        response = httpx.post(f"{hurried}{PATH}", files={"image": jpeg}, data=brief, timeout=120)
        if response.status_code == 200:
            break
        time.sleep(0.5)
    assert response.status_code == 200, response.text  # both have given their places back


def test_bodies_that_do_not_arrive(hurried: str) -> None:
    url = httpx.URL(hurried)
    connection = http.client.HTTPConnection(url.host, url.port or 80, timeout=120)
    connection.putrequest("POST", f"{url.path}{PATH}")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "9")
    connection.endheaders(b"{")
    response = connection.getresponse()
    assert response.status == 408
    assert "did not arrive within 2 s" in json.loads(response.read())["detail"]
    connection.close()


def _flat(mode: str, size: tuple[int, int]) -> bytes:
    return encoded(Image.new(mode, size), "PNG")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"I am text.\n" * 50, "not a picture"),
        (b"", "empty"),
        (_flat("RGB", (1, 1)), "too small"),
        (_flat("1", (20_000, 20_000)), "too large"),
        (_flat("1", (1100, 1000)), "1,000,000"),
        (_flat("RGB", (4, 900)), "too long"),
        (encoded(Image.effect_noise((90, 90), 80), "PNG")[:2000], "truncated"),
    ],
    ids=["text", "empty", "1x1", "bomb", "above the limit", "long", "truncated"],
)
def test_pictures_that_are_refused(client: httpx.Client, file: bytes, words: str) -> None:
    by_form = client.post(PATH, files={"image": ("photo.jpg", file)})
    assert_problem(by_form, 422, "image", words)
    by_json = client.post(PATH, json={"image": base64.b64encode(file).decode()})
    assert_problem(by_json, 422, "image", words)


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"layers": ["layer3", "layer9"]}, "layers", ["layer9", "layer2, layer3, layer4, all"]),
        ({"queries": [" "]}, "queries", ["no tokens for language_model"]),
        ({"queries": ["dog", "dog"]}, "queries", ["once"]),
        ({"queries": ["dog " * 200]}, "queries", ["fit the context"]),
        ({"queries": ["dog"] * 65}, "queries", ["64"]),
        ({"queries": ["dog"], "calibration": "contrast"}, "queries", ["two queries"]),
        ({"calibration": "loud"}, "calibration", ["'pmi'"]),
        ({"smoothing": 2}, "smoothing", ["smoothing: 2 is even"]),
        ({"smoothing": -1}, "smoothing", ["greater"]),
        ({"max_new_tokens": 0}, "max_new_tokens", ["greater"]),
        ({"max_new_tokens": 200}, "max_new_tokens", ["context of 64"]),
        ({"max_new_tokens": "many"}, "max_new_tokens", ["integer"]),
        ({"dense": "perhaps"}, "dense", ["boolean"]),
        ({"picture": "cat.png"}, "picture", ["no such field"]),
        ({"model": "gpt-9"}, "model", ["no model is called 'gpt-9'"]),
        ({"words": 51}, "words", ["less than or equal to 50"]),
    ],
)
def test_options_that_are_refused(
    client: httpx.Client, jpeg: bytes, options: dict[str, Any], field: str, words: list[str]
) -> None:
    by_form = client.post(PATH, files={"image": jpeg}, data=options)
    assert_problem(by_form, 422, field, *words)
    image = base64.b64encode(jpeg).decode()
    by_json = client.post(PATH, json={"image": image, **options})
    assert_problem(by_json, 422, field, *words)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({}, "image"),
        ({"image": None}, "image"),
        ({"image": 7}, "image"),
        ({"image": "%%%"}, "image"),
        ({"image": "aGk"}, "image"),
        ({"image": "é"}, "image"),
        ({"image": "aGk=", "layers": "all"}, "layers"),
        ({"image": "aGk=", "layers": []}, "layers"),
        ({"image": "aGk=", "dense": "no"}, "dense"),
        ({"image": "aGk=", "max_new_tokens": 3.5}, "max_new_tokens"),
        ({"image": "aGk=", "max_new_tokens": 10**400}, "max_new_tokens"),
        ({"image": "aGk=", "queries": [1]}, "queries"),
        ([], None),
        ("image", None),
    ],
)
def test_json_of_wrong_types(client: httpx.Client, document: Any, field: str | None) -> None:
    content = json.dumps(document)
    headers = {"content-type": "application/json"}
    assert_problem(client.post(PATH, content=content, headers=headers), 422, field)


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b'{"image": "\xff"}', "application/json", 400),
        (b'{"image": "\\ud800"}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"x", "multipart/form-data", 400),
        (b"x", "multipart/form-data; boundary=b", 400),
        (b"--b\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b", 400),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 422),
        (b"x", "text/plain", 415),
        (b"image=x", "application/x-www-form-urlencoded", 415),
    ],
)
def test_malformed_bodies(client: httpx.Client, content: bytes, kind: str, status: int) -> None:
    response = client.post(PATH, content=content, headers={"content-type": kind})
    assert_problem(response, status, "image" if status == 422 else None)


def test_missing_and_repeated_pictures(client: httpx.Client, jpeg: bytes) -> None:
    assert_problem(client.post(PATH, files={"photo": jpeg}), 422, "photo")
    as_text = client.post(PATH, files={"image": (None, "text")})
    assert_problem(as_text, 422, "image", "file")
    assert_problem(client.post(PATH, files=[("image", jpeg)] * 6), 400, None, "files")
    texts = [base64.b64encode(jpeg).decode()] * 6
    assert_problem(client.post(PATH, json={"images": texts}), 422, "images", "at most 5")
    both = {"image": texts[0], "images": texts[:1]}
    assert_problem(client.post(PATH, json=both), 422, "image", "either")
    twice = client.post(PATH, files={"image": jpeg}, data={"dense": ["true", "false"]})
    assert_problem(twice, 422, "dense", "once")
    assert_problem(client.post(PATH), 415, None)


def test_bodies_that_are_too_long(client: httpx.Client) -> None:
    long = b"x" * (MAX_REQUEST_BYTES + 1)
    assert_problem(client.post(PATH, files={"image": long}), 413, None, "200,000")
    headers = {"content-type": "application/json"}
    assert_problem(client.post(PATH, content=long, headers=headers), 413, None)

    def stream():  # has no Content-Length
        for _ in range(30):
            yield b"x" * 10_000

    assert_problem(client.post(PATH, content=stream(), headers=headers), 413, None)
