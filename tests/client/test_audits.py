"""Audits through the client: what is sent once, waited for, and fetched whole."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from both_clients import CUT, FAST, both
from scripted_server import (
    Asked,
    Reply,
    audit,
    document,
    finished,
    form,
    problem,
    scripted,
)

from devil.client import Client, RetryConfig
from devil.client.audits import GONE
from devil.client.transports import BlockingTransport
from devil.client.uploads import open_upload
from devil.errors import ConfigError, DataError, ServiceError

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


def test_a_connection_that_was_never_made_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(_: BlockingTransport, seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(BlockingTransport, "sleep", sleep)
    with scripted([]) as server:
        address = server.address
    with Client(address, retry=FAST) as client, pytest.raises(ServiceError) as caught:
        client.audits.start("photos")
    assert "ConnectError" in str(caught.value)
    assert len(slept) == FAST.tries - 1


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


def test_a_service_that_starts_again_is_waited_for() -> None:
    away = [CUT] * (FAST.tries + 1) + [Reply(status=404)] + [Reply(status=502)] * FAST.tries
    script = [document(audit("running")), *away, document(audit("finished"))]
    with scripted(script * 2) as server:
        for found in both(server.address, lambda c: c.audits.wait("a1", poll_seconds=0.01)):
            assert found.state == "finished", found
    assert len(server.asked) == 2 * len(script)


@pytest.mark.parametrize(
    ("answer", "away_seconds"),
    [(problem(404, GONE), 600), (problem(401), 600), (problem(422), 600), (Reply(status=404), 0)],
    ids=["gone", "no key", "refused", "away for too long"],
)
def test_waiting_ends(answer: Reply, away_seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devil.client.audits.AWAY_SECONDS", away_seconds)
    with scripted([answer] * 2) as server:
        for found in both(server.address, lambda c: c.audits.wait("a1", poll_seconds=0.01)):
            assert isinstance(found, ServiceError) and found.status in (404, 401, 422)
    assert len(server.asked) == 2


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
    script = [document({"audits": [audit()]}), CUT, problem(404, GONE), problem(404, GONE)]
    with scripted(script) as server, Client(server.address, retry=FAST) as client:
        (found,) = client.audits.list(limit=1, before="a&2")
        assert found.progress.pictures == 4
        client.audits.delete("a1")  # done by the request whose answer got lost
        with pytest.raises(ServiceError):
            client.audits.delete("a1")
    assert server.asked[0].path == "/v1/audits?limit=1&before=a%262"


@pytest.mark.parametrize(
    "answer",
    [problem(404, "There is no application at this address."), Reply(status=404, body=b"Path '/'")],
    ids=["front", "proxy"],
)
def test_a_404_that_is_not_the_services_removes_nothing(answer: Reply) -> None:
    with scripted([problem(503), answer] * 2) as server:
        for found in both(server.address, lambda client: client.audits.delete("a1")):
            assert isinstance(found, ServiceError) and found.status == 404
    assert len(server.asked) == 4
