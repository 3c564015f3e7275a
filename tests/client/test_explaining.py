"""Explanations through the client: what it sends, and what it makes of each answer."""

import io
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from both_clients import CUT, FAST, both, explained, file, picture
from PIL import Image
from scripted_server import (
    MODEL,
    Asked,
    Reply,
    document,
    form,
    lines,
    problem,
    scripted,
    small_explanation,
)

from devil.client import AsyncClient, Client, RetryConfig
from devil.errors import ConfigError, DataError, DevilError, ImageError, LayerError, ServiceError
from devil.explanation import Explanation

KEY = "key-that-nobody-may-read"


def test_explain_sends_the_file_and_the_options(tmp_path: Path) -> None:
    path = tmp_path / "photo.webp"
    path.write_bytes(file(picture(), "WEBP"))
    reply = explained(Content_Location="/v1/explanations/e7")

    def call(client: Any) -> Any:
        return client.explain(
            path,
            queries="dog",
            layers=["layer3", "all"],
            dense=False,
            points=[(0.25, 1)],
            words=3,
            prompt="für",
            model=None,
        )

    with scripted([reply, reply]) as server:
        for found in both(server.address, call):
            assert isinstance(found, Explanation)
            assert found.id == "e7" and found.source == str(path)
            assert found.image is not None and found.image.size == (8, 6)
            assert found.layers == small_explanation((8, 6)).layers
    for asked in server.asked:
        assert (asked.method, asked.path) == ("POST", "/v1/explain")
        assert form(asked) == {
            "image": [path.read_bytes()],
            "queries": [b"dog"],
            "layers": [b"layer3", b"all"],
            "dense": [b"false"],
            "points": [b"0.25,1.0"],
            "words": [b"3"],
            "prompt": ["für".encode()],
        }


def test_an_open_picture_is_sent_without_loss() -> None:
    grey = Image.linear_gradient("L").resize((8, 6)).convert("I;16")
    with scripted([explained()]) as server, Client(server.address) as client:
        found = client.explain(grey)
    sent = Image.open(io.BytesIO(form(server.asked[0])["image"][0]))
    assert found.image is not None and found.source is None
    assert sent.mode == "RGB" and sent.tobytes() == found.image.tobytes()


def test_caption_and_saliency_have_routes_and_options_of_their_own() -> None:
    with scripted([explained()] * 2) as server, Client(server.address) as client:
        client.caption(file(picture()), max_new_tokens=4)
        client.saliency(file(picture()), "dog", calibration="none")
        with pytest.raises(TypeError, match="queries"):
            client.caption(file(picture()), queries=["dog"])  # type: ignore[call-arg]
    assert [asked.path for asked in server.asked] == ["/v1/caption", "/v1/saliency"]
    assert form(server.asked[1])["queries"] == [b"dog"]


@pytest.mark.parametrize(
    ("image", "options", "error"),
    [
        ("missing.jpg", {}, ImageError),
        (b"no picture", {}, ImageError),
        (file(picture()), {"layers": []}, LayerError),
        (file(picture()), {"queries": ["\udc80"]}, DataError),
    ],
)
def test_what_cannot_be_asked_is_not_sent(image: Any, options: Any, error: type) -> None:
    with scripted([]) as server:
        for found in both(server.address, lambda client: client.explain(image, **options)):
            assert type(found) is error
    assert not server.asked


@pytest.mark.parametrize(
    "answer",
    [
        Reply(body=b"<html>", headers={"Content-Type": "text/html"}),
        document({"format_version": 99}),
        document([]),
        Reply(status=301, headers={"Location": "https://elsewhere/"}),
        explained(width=9),
    ],
    ids=["html", "format", "list", "redirect", "size"],
)
def test_other_answers_are_refused(answer: Reply) -> None:
    with scripted([answer] * 2) as server:
        for found in both(server.address, lambda client: client.explain(file(picture()))):
            assert isinstance(found, ServiceError), found
    assert len(server.asked) == 2


def test_the_key_goes_into_a_header_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    echo = problem(401, f"Bearer {KEY} is unknown")
    with scripted([echo, echo, CUT, echo]) as server:
        (found, other) = both(server.address, lambda client: client.models(), key=KEY)
        monkeypatch.setenv("DEVIL_API_KEY", KEY)
        with Client(server.address, retry=FAST) as client, pytest.raises(ServiceError) as caught:
            client.models()
    assert [asked.headers["authorization"] for asked in server.asked] == [f"Bearer {KEY}"] * 4
    for error in (found, other, caught.value):
        while error is not None:
            assert KEY not in str(error) + repr(error) + repr(vars(error))
            error = error.__cause__


@pytest.mark.parametrize(
    ("address", "options"),
    [
        ("localhost:8000", {}),
        ("ftp://localhost", {}),
        (f"http://user:{KEY}@localhost", {}),
        (f"http://localhost?key={KEY}", {}),
        ("http://localhost", {"key": f"{KEY}\n"}),
        ("http://localhost", {"key": f"{KEY}é"}),
        ("http://localhost", {"timeout": 0}),
        ("http://localhost", {"timeout": math.nan}),
    ],
)
def test_what_no_client_can_be_made_of(address: str, options: dict[str, Any]) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ConfigError) as caught:
            kind(address, **options)
        assert KEY not in str(caught.value)


def line(index: int, width: int, text: str = "a dog") -> dict[str, Any]:
    explanation = small_explanation((width, 6), text).to_dict()
    return {"index": index, "id": f"e{width}", "explanation": explanation}


def refusal(index: int, status: int) -> dict[str, Any]:
    return {"index": index, "problem": {"status": status, "title": "x", "detail": "not so"}}


def test_many_pictures_come_as_they_are_done() -> None:
    images = [file(picture(8 + i)) for i in range(3)]
    images.insert(1, b"no picture")
    answer = Reply(body=lines(line(2, 10), refusal(1, 422), line(0, 8)))
    with scripted([answer] * 2) as server:
        for found in both(server.address, lambda client: client.explain_many(images, words=1)):
            assert [outcome.index for outcome in found] == [1, 3, 2, 0]
            assert isinstance(found[0].error, ImageError)
            assert (found[2].error.status, found[2].error.detail) == (422, "not so")
            for outcome in (found[1], found[3]):
                explanation = outcome.get()
                assert explanation.id == f"e{8 + outcome.index - (outcome.index > 1)}"
                assert explanation.image.size == explanation.image_size
            with pytest.raises(ServiceError, match="not so"):
                found[2].get()
    for asked in server.asked:
        assert asked.headers["accept"] == "application/x-ndjson"
        assert form(asked) == {"image": [images[0], *images[2:]], "words": [b"1"]}


def test_a_stream_that_breaks_off_is_asked_for_the_rest() -> None:
    images = [file(picture(8 + i)) for i in range(4)]
    first = lines(line(2, 10)) + lines(line(1, 9))[:-40]
    script = [
        problem(503),
        Reply(body=first + b" " * 99, cut=len(first)),
        Reply(body=lines(line(1, 9), refusal(2, 503))),  # says nothing of one
        Reply(body=lines(refusal(0, 429), line(1, 11))),
        Reply(body=lines(line(0, 8))),
    ]
    with scripted(script * 2) as server:
        for found in both(server.address, lambda client: client.explain_many(images)):
            assert [outcome.index for outcome in found] == [2, 1, 3, 0]
            assert [outcome.get().image_size[0] for outcome in found] == [10, 9, 11, 8]
    sent = [form(asked)["image"] for asked in server.asked[:5]]
    assert sent[1] == images and sent[2] == [images[0], images[1], images[3]]
    assert sent[3] == [images[0], images[3]] and sent[4] == [images[0]]


def test_a_picture_that_is_refused_again_and_again_has_an_error() -> None:
    images = [file(picture(8 + i)) for i in range(3)]
    script = [Reply(body=lines(line(0, 8), refusal(1, 503)))] + [
        Reply(body=lines(refusal(0, 503)))
    ] * (FAST.tries - 1)
    script.append(Reply(body=lines(line(0, 10))))
    with scripted(script) as server, Client(server.address, retry=FAST) as client:
        found = list(client.explain_many(images, group=2))
    assert [outcome.index for outcome in found] == [0, 1, 2]
    assert [getattr(outcome.error, "status", None) for outcome in found] == [None, 503, None]


def test_a_picture_that_is_too_large_has_an_error() -> None:
    images = [file(picture(8 + i)) for i in range(3)]
    script = [Reply(body=lines(line(0, 8))), problem(413), Reply(body=lines(line(0, 10)))]
    with scripted(script) as server, Client(server.address, retry=FAST) as client:
        found = list(client.explain_many(images, group=1))
    assert [getattr(outcome.error, "status", None) for outcome in found] == [None, 413, None]


def test_groups_are_taken_one_after_the_other() -> None:
    taken = []

    def images() -> Any:
        for index in range(5):
            taken.append(index)
            yield picture(8 + index)

    def script(asked: Asked) -> Reply:
        widths = [Image.open(io.BytesIO(image)).width for image in form(asked)["image"]]
        return Reply(body=lines(*(line(i, width) for i, width in enumerate(widths))))

    with scripted(script) as server, Client(server.address) as client:
        outcomes = client.explain_many(images(), group=2)
        assert next(outcomes).index == 0 and len(taken) == 3
        assert [outcome.index for outcome in outcomes] == [1, 2, 3, 4]
        assert len(server.asked) == 3
        unfinished = client.explain_many(images(), group=2)
        next(unfinished)
        unfinished.close()
        assert len(server.asked) == 4


@pytest.mark.parametrize(
    "body",
    [b"nonsense\n", lines(line(5, 8)), lines(line(-1, 8)), lines({"index": 0}), lines([])],
)
def test_lines_that_say_nothing_of_a_picture_are_refused(body: bytes) -> None:
    with scripted([Reply(body=body)] * 2) as server:
        for found in both(server.address, lambda c: c.explain_many([file(picture())])):
            assert isinstance(found, ServiceError), found


def test_models() -> None:
    with scripted([document({"models": [MODEL]}), document(MODEL)]) as server:
        with Client(server.address + "/below/") as client:
            (listed,) = client.models()
            assert client.model("a/b") == listed
            for id in ("", ".."):
                with pytest.raises(DataError):
                    client.model(id)
    assert [asked.path for asked in server.asked] == ["/below/v1/models", "/below/v1/models/a%2Fb"]
    assert listed.layers[0].grid == (2, 3) and listed.default and listed.scores["cider"] == 0.3


def test_kept_explanations(tmp_path: Path) -> None:
    whole = Reply(body=b"\x89PNG" + bytes(200_000))
    half = Reply(body=whole.body, cut=100_000)
    with scripted([explained(), half, whole, half, half, whole]) as server:
        with Client(server.address, retry=RetryConfig(tries=2, first_wait_seconds=0.01)) as client:
            found = client.explanation("e1")
            assert found.id == "e1" and found.image is None
            path = client.explanation_png("e1", tmp_path / "e.png")
            assert path.read_bytes() == whole.body
            with pytest.raises(ServiceError):
                client.explanation_html("e1", tmp_path / "e.html")
            assert os.listdir(tmp_path) == ["e.png"]
            with pytest.raises(DevilError, match="missing"):
                client.explanation_html("e1", tmp_path / "missing" / "e.html")
    assert [asked.path for asked in server.asked[1:4]] == [
        "/v1/explanations/e1.png",
        "/v1/explanations/e1.png",
        "/v1/explanations/e1.html",
    ]


def test_importing_the_client_needs_no_torch() -> None:
    program = "import sys, devil.client; print({'torch', 'ray', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr
