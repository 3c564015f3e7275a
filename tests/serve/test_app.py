"""The whole application over HTTP: answers equal the Python API's, and errors say what is wrong."""

import asyncio
import base64
import json
import math
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import ray.serve
from PIL import Image
from tiny import encoded, picture

from devil import DecodingConfig, DeViL
from serve.app import Ingress
from serve.schemas import ExplanationDocument, ModelList
from serve.settings import Settings

from .conftest import MAX_REQUEST_BYTES

PATH = "/v1/explain"


def assert_equal(found: Any, expected: Any) -> None:
    """The same document; numbers to float32's precision, for batches round otherwise."""
    if isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=1e-4, abs_tol=1e-4), (found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


def expected(model: DeViL, image: bytes, max_new_tokens: int = 50, **options: Any) -> dict:
    decoding = DecodingConfig(max_new_tokens=max_new_tokens)
    return model.explain(image, decoding=decoding, **options).to_dict()


def assert_problem(response: httpx.Response, status: int, field: str | None, *words: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status and problem["title"]
    assert problem.get("field") == field, problem
    for word in words:
        assert word in problem["detail"], problem
    assert "Traceback" not in response.text and ".py" not in response.text


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_multipart_answers_as_the_python_api(client: httpx.Client, model: DeViL, kind: str) -> None:
    image = encoded(picture("a blue square on the top side", side=80), kind)
    queries = ["a red circle", "square"]
    response = client.post(
        PATH, files={"image": image}, data={"layers": ["layer3", "all"], "queries": queries}
    )
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    ExplanationDocument.model_validate_json(response.content, strict=True)
    options = {"layers": ["layer3", "all"], "queries": queries}
    assert_equal(response.json(), expected(model, image, **options))


def test_json_answers_as_the_python_api(client: httpx.Client, model: DeViL, jpeg: bytes) -> None:
    options = {
        "layers": ["layer4"],
        "queries": ["circle", "a line"],
        "dense": False,
        "calibration": "contrast",
        "prompt": "a red",
        "smoothing": 3,
        "max_new_tokens": 4,
    }
    image = base64.b64encode(jpeg).decode()
    response = client.post(PATH, json={"image": image, **options})
    assert response.status_code == 200, response.text
    assert_equal(response.json(), expected(model, jpeg, **options))


def test_every_option_of_a_form_counts(client: httpx.Client, model: DeViL, jpeg: bytes) -> None:
    options = {
        "layers": ["all"],
        "queries": ["circle"],
        "dense": False,
        "calibration": "none",
        "prompt": "a red",
        "smoothing": 3,
        "max_new_tokens": 4,
    }
    response = client.post(PATH, files={"image": jpeg}, data=options)
    assert_equal(response.json(), expected(model, jpeg, **options))


def test_defaults_are_the_python_apis(client: httpx.Client, model: DeViL, jpeg: bytes) -> None:
    by_form = client.post(PATH, files={"image": jpeg})
    by_json = client.post(PATH, json={"image": base64.b64encode(jpeg).decode()})
    assert [layer["layer"] for layer in by_form.json()["layers"]] == [*model.layers, "all"]
    assert_equal(by_form.json(), model.explain(jpeg).to_dict())
    assert_equal(by_json.json(), model.explain(jpeg).to_dict())


def test_concurrent_requests_with_different_options(address: str, model: DeViL) -> None:
    captions = ["a red circle on the left side", "a green line on the bottom side"]
    images = [encoded(picture(caption, side=72 + i)) for i, caption in enumerate(captions)]
    choices = [
        {"layers": ["layer2"], "dense": False, "queries": ["red"]},
        {"layers": ["layer4", "all"], "queries": ["red", "a green line"]},
        {"layers": ["layer4"], "queries": ["circle"], "smoothing": 3, "calibration": "mean"},
    ]
    requests = [(image, options) for image in images for options in choices] * 2
    bad = (b"not a picture", choices[0])
    responses = asyncio.run(_post_all(address, [*requests, bad, bad]))
    for (image, options), response in zip(requests, responses, strict=False):
        assert response.status_code == 200, response.text
        assert_equal(response.json(), expected(model, image, **options))
    assert [response.status_code for response in responses[-2:]] == [422, 422]


async def _post_all(
    address: str, requests: list[tuple[bytes, dict[str, Any]]]
) -> list[httpx.Response]:
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        return await asyncio.gather(
            *(client.post(PATH, files={"image": i}, data=options) for i, options in requests)
        )


def test_more_requests_than_the_queue_holds(
    address: str, client: httpx.Client, jpeg: bytes
) -> None:
    async def post_all_and_check_health() -> tuple[list[httpx.Response], httpx.Response]:
        posts = asyncio.create_task(_post_all(address, [(jpeg, {})] * 48))
        async with httpx.AsyncClient(base_url=address, timeout=120) as other:
            await asyncio.sleep(0.5)
            health = await other.get("/healthz")
        return await posts, health

    responses, health = asyncio.run(post_all_and_check_health())
    assert health.json()["status"] in ("busy", "ready"), health.text
    statuses = {response.status_code for response in responses}
    assert statuses == {200, 429}
    refused = next(response for response in responses if response.status_code == 429)
    assert_problem(refused, 429, None, "waiting")
    assert int(refused.headers["retry-after"]) >= 1
    assert client.post(PATH, files={"image": jpeg}, data={"dense": False}).status_code == 200


@pytest.fixture(scope="module")
def hurried(address: str) -> Iterator[str]:
    """Where another ingress to the same explainer answers, which gives requests up early."""
    explainer = ray.serve.get_deployment_handle("Explainer", app_name="default")
    deployment = ray.serve.deployment(Ingress, ray_actor_options={"num_cpus": 0})
    settings = Settings(timeout_seconds=0.25)
    ray.serve.run(deployment.bind(settings, explainer), name="hurried", route_prefix="/hurried")
    yield f"{address}/hurried"
    ray.serve.delete("hurried")


def test_requests_that_take_too_long(hurried: str, jpeg: bytes) -> None:
    queries = [f"a red circle {number}" for number in range(64)]
    for response in asyncio.run(_post_all(hurried, [(jpeg, {"queries": queries})] * 2)):
        assert_problem(response, 503, None, "No answer within 0.25 s")
        assert int(response.headers["retry-after"]) >= 1
    brief = {"layers": ["layer4"], "dense": False, "max_new_tokens": 1}
    for _ in range(120):  # once the batch that nobody waits for is done
        response = httpx.post(f"{hurried}{PATH}", files={"image": jpeg}, data=brief, timeout=120)
        if response.status_code == 200:
            break
        time.sleep(0.5)
    assert response.status_code == 200, response.text


def test_bodies_that_do_not_arrive(hurried: str) -> None:
    url = httpx.URL(hurried)
    with socket.create_connection((url.host, url.port), timeout=120) as connection:
        head = f"POST {url.path}{PATH} HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: 9\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
        answer = connection.recv(10_000).decode()
    assert answer.startswith("HTTP/1.1 408") and "did not arrive within 0.25 s" in answer


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
        ({"image": "aGk=", "layers": []}, "image"),
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
    assert_problem(client.post(PATH, files=[("image", jpeg)] * 2), 400, None, "files")
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


def test_models(client: httpx.Client, model: DeViL) -> None:
    response = client.get("/v1/models")
    (found,) = ModelList.model_validate_json(response.content).models
    assert (found.id, found.version) == (model.name, model.version)
    assert found.backbone == "timm:test_resnet"
    assert found.language_model == "language_model"
    shapes = {layer.name: (layer.channels, *layer.grid) for layer in found.layers}
    assert shapes == {name: tuple(shape) for name, shape in model.shapes.items()}


def test_health_and_unknown_routes(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ready"}
    assert_problem(client.get("/v2/explain"), 404, None)
    refused = client.get(PATH)
    assert_problem(refused, 405, None)
    assert refused.headers["allow"] == "POST"


def test_openapi_document(client: httpx.Client) -> None:
    assert "swagger" in client.get("/docs").text
    document = client.get("/openapi.json").json()
    explain = document["paths"][PATH]["post"]
    statuses = {"200", "400", "408", "413", "415", "422", "429", "500", "503"}
    assert set(explain["responses"]) == statuses
    problem = explain["responses"]["422"]["content"]["application/problem+json"]
    assert problem["schema"]["$ref"] == "#/components/schemas/Problem"
    assert set(explain["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    for reference in _references(document):
        part: Any = document
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]
    example = explain["requestBody"]["content"]["application/json"]["example"]
    answer = client.post(PATH, json=example)
    assert answer.status_code == 200, answer.text
    assert [layer["layer"] for layer in answer.json()["layers"]] == ["all"]


def _references(part: Any) -> list[str]:
    if isinstance(part, dict):
        found = [value for key, value in part.items() if key == "$ref"]
        return found + [r for value in part.values() for r in _references(value)]
    return [r for value in part for r in _references(value)] if isinstance(part, list) else []
