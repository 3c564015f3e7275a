"""The whole application over HTTP: answers equal the Python API's."""

import asyncio
import base64
import json
import math
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny import encoded, picture

from devil import DecodingConfig, DeViL
from serve.schemas import ExplanationDocument, Line, ModelList

from .conftest import PATH, assert_problem, post_all


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
    responses = asyncio.run(post_all(address, [*requests, bad, bad]))
    for (image, options), response in zip(requests, responses, strict=False):
        assert response.status_code == 200, response.text
        assert_equal(response.json(), expected(model, image, **options))
    assert [response.status_code for response in responses[-2:]] == [422, 422]


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
    documentation = client.get("/docs").text
    assert "://" not in documentation.replace("window.location.protocol + '//'", "")
    files = set(re.findall(r'(?:src|href)="(/docs/files/[^"]+)"', documentation))
    assert {Path(name).name for name in files} >= {"swagger-ui-bundle.js", "swagger-ui.css"}
    assert all(client.get(name).status_code == 200 for name in files)
    document = client.get("/openapi.json").json()
    explain = document["paths"][PATH]["post"]
    statuses = {"200", "400", "401", "403", "408", "413", "415", "422", "429", "500", "503"}
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


def test_points_words_and_routes_of_their_own(
    client: httpx.Client, model: DeViL, jpeg: bytes
) -> None:
    files = {"image": jpeg}
    asked = {"layers": ["layer3", "all"], "points": ["0.1,0.9", "0.5,0.5"], "words": 3}
    found = client.post("/v1/caption", files=files, data=asked)
    own = {"layers": ["layer3", "all"], "points": [(0.1, 0.9), (0.5, 0.5)], "words": 3}
    assert_equal(found.json(), expected(model, jpeg, **own))
    asked = {"layers": ["layer4"], "queries": ["red", "circle"], "calibration": "contrast"}
    found = client.post("/v1/saliency", files=files, data=asked)
    assert_equal(found.json(), expected(model, jpeg, captions=False, dense=False, **asked))
    assert found.json()["layers"][0]["caption"] is None
    refused = client.post("/v1/caption", files=files, data={"queries": ["red"]})
    assert_problem(refused, 422, "queries", "no such field")
    assert_problem(client.post("/v1/saliency", files=files), 422, "queries", "required")


def test_several_pictures_are_lines(client: httpx.Client, model: DeViL, jpeg: bytes) -> None:
    images = [encoded(picture("a red circle on the left side", side=70 + i)) for i in range(3)]
    files = [("image", image) for image in [*images, b"no picture"]]
    options = {"layers": ["layer4"], "queries": ["red"]}
    response = client.post(PATH, files=files, data=options)
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = [Line.model_validate_json(line) for line in response.text.splitlines()]
    assert sorted(line.index for line in lines) == [0, 1, 2, 3]
    documents = {json.loads(line)["index"]: json.loads(line) for line in response.text.splitlines()}
    assert documents[3]["problem"]["field"] == "image" and "explanation" not in documents[3]
    for i, image in enumerate(images):
        assert_equal(documents[i]["explanation"], expected(model, image, **options))
        kept = client.get(f"/v1/explanations/{documents[i]['id']}")
        assert kept.json() == documents[i]["explanation"]
    texts = [base64.b64encode(image).decode() for image in images[:1]]
    (line,) = client.post(PATH, json={"images": texts, **options}).text.splitlines()
    assert_equal(json.loads(line)["explanation"], expected(model, images[0], **options))
    asked = {"accept": "application/x-ndjson"}
    single = client.post(PATH, files={"image": jpeg}, data=options, headers=asked)
    assert json.loads(single.text)["index"] == 0


def test_kept_explanations(client: httpx.Client, jpeg: bytes) -> None:
    options = {"layers": ["layer4"], "queries": ["red"]}
    response = client.post(PATH, files={"image": jpeg}, data=options)
    place = response.headers["content-location"]
    assert client.get(place).json() == response.json()
    assert client.get(f"{place}/picture").content == jpeg
    png = client.get(f"{place}.png")
    assert png.headers["content-type"] == "image/png" and png.content.startswith(b"\x89PNG")
    page = client.get(f"{place}.html")
    assert page.headers["content-type"].startswith("text/html") and "</html>" in page.text
    assert "sandbox" in page.headers["content-security-policy"]
    unkept = client.post(PATH, files={"image": jpeg}, data={**options, "keep": False})
    assert "content-location" not in unkept.headers
    for wrong in ("0" * 32, "..", "%2e%2e%2fx", "A" * 32):
        for ending in ("", ".png", ".html", "/picture"):
            assert client.get(f"/v1/explanations/{wrong}{ending}").status_code == 404
    for _ in range(20):  # the last 20 are kept
        client.post(PATH, files={"image": jpeg}, data={"layers": ["layer4"], "dense": False})
    assert_problem(client.get(place), 404, "id", "the last 20")


def test_one_model_by_its_id(client: httpx.Client, model: DeViL, jpeg: bytes) -> None:
    found = client.get(f"/v1/models/{model.name}").json()
    assert found == client.get("/v1/models").json()["models"][0] and found["default"]
    assert_problem(client.get("/v1/models/gpt-9"), 404, "id", model.name)
    asked = {"model": model.name, "layers": ["layer4"], "dense": False}
    assert client.post(PATH, files={"image": jpeg}, data=asked).status_code == 200
