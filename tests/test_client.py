"""The client against a real server that fails in every way: what it sends, repeats and raises."""

import asyncio
import datetime
import email.utils
import io
import json
import math
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scripted_server import (
    MODEL,
    Asked,
    Reply,
    audit,
    document,
    finished,
    form,
    lines,
    problem,
    scripted,
    small_explanation,
)

from devil.client import AsyncClient, Client, RetryConfig
from devil.client.calls import Call
from devil.client.retries import Failed, Tries
from devil.client.uploads import open_upload
from devil.errors import ConfigError, DataError, DevilError, ImageError, LayerError, ServiceError
from devil.explanation import Explanation

KEY = "key-that-nobody-may-read"
FAST = RetryConfig(first_wait_seconds=0.001, longest_wait_seconds=0.01, tries=4, total_seconds=60)
CUT = Reply(cut=-1)


def picture(width: int = 8, colour: str = "red") -> Image.Image:
    return Image.new("RGB", (width, 6), colour)


def file(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def explained(width: int = 8, **headers: str) -> Reply:
    return document(small_explanation((width, 6)).to_dict(), **headers)


def both(address: str, call: Callable[[Any], Any], **options: Any) -> tuple[Any, Any]:
    """What a call of the one and of the other client gives, or raises."""

    def outcome(error: BaseException | None, value: Any = None) -> Any:
        return error if isinstance(error, DevilError) else value

    async def awaited() -> Any:
        async with AsyncClient(address, retry=FAST, **options) as client:
            found = call(client)
            if hasattr(found, "__aiter__"):
                return [item async for item in found]
            return await found

    with Client(address, retry=FAST, **options) as client:
        try:
            found = call(client)
            blocking = found if not hasattr(found, "__next__") else list(found)
        except DevilError as error:
            blocking = error
    try:
        waiting = asyncio.run(awaited())
    except DevilError as error:
        waiting = error
    return blocking, waiting


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
    "failure",
    [
        CUT,
        Reply(body=b"x" * 100, cut=3),
        problem(429),
        problem(503, Retry_After="0"),
        Reply(status=502),
    ],
    ids=["cut", "half", "429", "503", "502"],
)
def test_what_passes_is_repeated(failure: Reply) -> None:
    script = [failure, failure, failure, explained()]
    with scripted(script * 2) as server:
        for found in both(server.address, lambda client: client.explain(file(picture()))):
            assert isinstance(found, Explanation), found
    assert len(server.asked) == 8
    assert len({str(form(asked)) for asked in server.asked}) == 1


@pytest.mark.parametrize(
    "failure", [CUT, problem(429, "full", Retry_After="0")], ids=["cut", "429"]
)
def test_the_number_of_tries_is_bounded(failure: Reply) -> None:
    with scripted([failure] * 9) as server:
        for found in both(server.address, lambda client: client.models()):
            assert isinstance(found, ServiceError)
    assert len(server.asked) == 2 * FAST.tries


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 415, 422, 500])
def test_what_does_not_pass_is_told_at_once(status: int) -> None:
    refusal = problem(status, "layer9 is none.", "layers", X_Request_Id="r1")
    with scripted([refusal] * 2) as server:
        for found in both(server.address, lambda client: client.explain(file(picture()))):
            assert isinstance(found, ServiceError)
            assert (found.status, found.field, found.request_id) == (status, "layers", "r1")
            assert found.detail == "layer9 is none."
            assert str(found) == f"layer9 is none ({status} for POST /v1/explain, request r1)."
            again = pickle.loads(pickle.dumps(found))
            assert vars(again) == vars(found) and str(again) == str(found)
    assert len(server.asked) == 2


def test_retry_after_is_waited_for() -> None:
    """The server refuses whoever comes back earlier than it said."""
    first: list[float] = []

    def script(asked: Asked) -> Reply:
        first.append(time.monotonic())
        early = time.monotonic() < first[0] + 1
        return problem(429, Retry_After="1") if early else document({"models": []})

    with scripted(script) as server, Client(server.address, retry=FAST) as client:
        assert client.models() == []
    assert len(server.asked) == 2


def failed(retry_after: float | None = None, *, passes: bool = True, begun: bool = True) -> Failed:
    return Failed(ServiceError("no", retry_after=retry_after), passes=passes, begun=begun)


GET = Call(method="GET", path="/")


def test_waits_double_up_to_a_limit_and_are_drawn() -> None:
    config = RetryConfig(
        tries=99, total_seconds=math.inf, first_wait_seconds=1.0, longest_wait_seconds=8.0
    )
    runs = []
    for _ in range(200):
        tries = Tries(config)
        runs.append([tries.wait_after(failed(), GET) for _ in range(80)])
    for number, limit in [(0, 1.0), (1, 2.0), (2, 4.0), (3, 8.0), (4, 8.0), (79, 8.0)]:
        waits = [run[number] for run in runs]
        assert limit / 2 <= min(waits) < max(waits) <= limit
        assert len(set(waits)) > 100


def test_a_server_names_the_wait() -> None:
    waits = [Tries(RetryConfig()).wait_after(failed(12.0), GET) for _ in range(100)]
    assert 12 <= min(waits) < max(waits) <= 13


def test_the_whole_time_is_bounded() -> None:
    tries = Tries(RetryConfig(total_seconds=10))
    with pytest.raises(ServiceError) as caught:
        tries.wait_after(failed(11.0), GET)
    assert caught.value.retry_after == 11


@pytest.mark.parametrize("form", ["seconds", "date", "nonsense"])
def test_retry_after_in_each_form(form: str) -> None:
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=2)
    value = {"seconds": "7200", "date": email.utils.format_datetime(later, usegmt=True)}
    once = RetryConfig(tries=1)
    with scripted([problem(503, Retry_After=value.get(form, "soon"))]) as server:
        with Client(server.address, retry=once) as client, pytest.raises(ServiceError) as caught:
            client.models()
    asked = caught.value.retry_after
    assert asked is None if form == "nonsense" else asked is not None and 7000 < asked <= 7200


def test_errors_of_the_connection() -> None:
    with scripted([]) as server:
        address = server.address
    for found in both(address, lambda client: client.models()):
        assert isinstance(found, ServiceError) and found.status is None
        assert address in str(found) and "ConnectError" in str(found)


def test_an_answer_that_takes_too_long_is_not_waited_for_again() -> None:
    held, ended = [], threading.Event()

    def script(asked: Asked) -> Reply:
        held.append(asked)
        ended.wait(60)
        return document({"models": []})

    with scripted(script) as server:
        for found in both(server.address, lambda client: client.models(), timeout=0.2):
            assert isinstance(found, ServiceError) and "longer timeout" in str(found)
        ended.set()
    assert len(held) == 2


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


STARTS = {
    "a refusal": (problem(429), True),
    "a refusal that names a time": (problem(503, Retry_After="0"), True),
    "a gateway": (Reply(status=503), False),
    "another gateway": (Reply(status=502), False),
    "a cut": (CUT, False),
    "half an answer": (Reply(body=bytes(99), cut=9), False),
}


@pytest.mark.parametrize("failure", STARTS)
@pytest.mark.parametrize("call", ["start", "resume"])
def test_an_audit_is_never_started_twice(failure: str, call: str) -> None:
    """Only where the service has said that it did nothing is it asked again."""
    reply, repeated = STARTS[failure]
    with scripted([reply, *[document(audit())] * 2]) as server:
        with Client(server.address, retry=FAST) as client:
            if repeated:
                assert getattr(client.audits, call)("a1").id == "a1"
            else:
                with pytest.raises(ServiceError):
                    getattr(client.audits, call)("a1")
        posts = [asked for asked in server.asked if asked.method == "POST"]
    assert len(posts) == (2 if repeated else 1)


def test_a_connection_that_was_never_made_is_tried_again() -> None:
    with scripted([]) as server:
        address = server.address
    with Client(address, retry=FAST) as client, pytest.raises(ServiceError) as caught:
        client.audits.start("photos")
    assert "ConnectError" in str(caught.value)


def photos(folder: Path) -> dict[str, bytes]:
    """A folder of pictures and other files; what is to be sent of it."""
    names = ["b.JPG", "deep/" + "long" * 40 + ".png", "deep/ünïcode.webp", "empty.jpeg"]
    files = {name: os.urandom(1 << 20) + name.encode() for name in names[:3]} | {names[3]: b""}
    for name, content in {**files, "notes.txt": b"no picture"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return files


def test_a_folder_is_sent_as_a_tar(tmp_path: Path) -> None:
    files = photos(tmp_path)
    call = {"upload": tmp_path, "queries": ["dog", "cat"], "title": "Fur"}
    script = [problem(429), document(audit())]
    with scripted(script * 2) as server:
        for found in both(server.address, lambda client: client.audits.start(**call)):
            assert found.id == "a1" and not found.ended
    assert len(server.asked) == 4
    for asked in server.asked:
        sent = form(asked)
        assert sent["queries"] == [b"dog", b"cat"] and sent["title"] == [b"Fur"]
        with tarfile.open(fileobj=io.BytesIO(sent["archive"][0])) as tar:
            found = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        assert found == files


def test_an_archive_is_sent_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    path.write_bytes(os.urandom(300_000))
    with scripted([document(audit())]) as server, Client(server.address) as client:
        client.audits.start(upload=path)
    assert form(server.asked[0])["archive"] == [path.read_bytes()]


def test_a_folder_of_any_size_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    os.truncate(tmp_path / "a.jpg", 9 << 30)  # a hole, and beyond the eight bytes of old tars
    content = open_upload(tmp_path).content
    assert content.seek(0, os.SEEK_END) > 9 << 30
    content.seek(0)
    assert tarfile.TarInfo.frombuf(content.read(512), "utf-8", "strict").size == 9 << 30


def test_a_picture_that_changes_while_it_is_sent_ends_the_request(tmp_path: Path) -> None:
    photos(tmp_path)
    content = open_upload(tmp_path).content
    (tmp_path / "b.JPG").write_bytes(b"shorter")
    with pytest.raises(DataError, match=r"b\.JPG became shorter"):
        content.read()


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "both", "neither"])
def test_what_no_audit_can_be_made_of(kind: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").touch()
    given = {
        "missing": {"upload": tmp_path / "missing"},
        "file": {"upload": tmp_path / "file.txt"},
        "empty": {"upload": tmp_path / "empty"},
        "both": {"upload": tmp_path, "images": "s3://bucket"},
        "neither": {},
    }[kind]
    with scripted([]) as server, Client(server.address) as client:
        with pytest.raises((DataError, ConfigError)):
            client.audits.start(**given)
    assert not server.asked


def test_an_audit_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    progress = {"pictures": 40, "explained": 30, "failed": 2, "failures": {"decode": 2}}
    script = [
        document({"id": "a1", "state": "queued", "progress": {"pictures": None}}),
        problem(503),
        document(audit("running", progress=progress)),
        document(audit("stopped")),  # the service starts again
        document(audit("running", progress=progress)),
        document(audit("failed", problem="the model is gone")),
    ]
    with scripted(script * 2) as server:
        for found in both(server.address, lambda c: c.audits.wait("a1", poll_seconds=0.01)):
            assert (found.state, found.problem) == ("failed", "the model is gone")
    shown = capsys.readouterr().err
    assert "32/40" in shown and "running, 2 failed" in shown


def test_an_audit_that_stays_stopped_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devil.client.audits.RESTART_SECONDS", 0.025)
    with scripted([document(audit("stopped"))] * 3) as server, Client(server.address) as client:
        found = client.audits.wait("a1", bar=False, poll_seconds=0.01)
    assert found.state == "stopped" and len(server.asked) == 3


def test_results_are_fetched_whole_and_go_on(tmp_path: Path) -> None:
    broken = Reply(body=b"errors", cut=3)
    once = RetryConfig(tries=1)
    script = [finished(), Reply(body=b"part"), broken, finished(), Reply(body=b"errors")]
    script.append(Reply(body=b"report"))
    with scripted(script) as server, Client(server.address, retry=once) as client:
        with pytest.raises(ServiceError):
            client.audits.results("a1", tmp_path / "deep" / "a1")
        assert not (tmp_path / "deep/a1/errors/part-0.parquet").exists()
        report = client.audits.results("a1", tmp_path / "deep" / "a1")
    files = {str(p.relative_to(report.parent)): p for p in report.parent.rglob("*.*")}
    assert files.keys() == {
        "index.html",
        "part-0.parquet",
        "errors/part-0.parquet",
        "served_audit.json",
    }
    assert files["index.html"].read_bytes() == b"report"
    assert json.loads(files["served_audit.json"].read_text())["id"] == "a1"
    assert [asked.path.rpartition("/files/")[2] for asked in server.asked[1:3]] == [
        "part-0.parquet",
        "errors/part-0.parquet",
    ]


@pytest.mark.parametrize(
    "results",
    [
        {"parts": ["/v1/audits/a1/files/../../x.parquet"]},
        {"parts": ["/v1/audits/a1/files/%2e%2e/x.parquet"]},
        {"errors": ["/v1/audits/a1/files/.bashrc"]},
        {"report": "/v1/audits/a1/files//etc/passwd"},
        {"report": None},
    ],
)
def test_results_stay_in_their_folder(results: dict[str, Any], tmp_path: Path) -> None:
    def script(asked: Asked) -> Reply:
        return finished(**results) if asked.path == "/v1/audits/a1" else Reply(body=b"x")

    with scripted(script) as server, Client(server.address) as client:
        with pytest.raises(ServiceError):
            client.audits.results("a1", tmp_path / "a" / "b")
    names = {path.name for path in tmp_path.rglob("*")}
    assert names <= {"a", "b", "errors", "part-0.parquet", "served_audit.json"}


def test_results_of_two_audits_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with scripted([finished()]) as server, Client(server.address) as client:
        with pytest.raises(DataError, match=r"mine\.txt"):
            client.audits.results("a1", tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"] or set(os.listdir(tmp_path)) == {
        "mine.txt",
        "errors",
    }


def test_audits_are_listed_and_removed() -> None:
    script = [document({"audits": [audit()]}), CUT, problem(404), problem(404)]
    with scripted(script) as server, Client(server.address, retry=FAST) as client:
        (found,) = client.audits.list(limit=1, before="a&2")
        assert found.progress.pictures == 4
        client.audits.delete("a1")  # done by the request whose answer got lost
        with pytest.raises(ServiceError):
            client.audits.delete("a1")
    assert server.asked[0].path == "/v1/audits?limit=1&before=a%262"


def test_importing_the_client_needs_no_torch() -> None:
    program = "import sys, devil.client; print({'torch', 'ray', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr
