"""Bulk audits over HTTP on a Ray head of their own: every picture is accounted for once.

The service, the job and the whole cluster are ended in the middle of audits.
"""

import io
import os
import signal
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from processes import Process, kill_marked, processes
from ray_head import Head, free_ports, ray_head
from tiny import CAPTIONS, encoded, picture, tiny_model

from serve.audit_schemas import AuditDocument, AuditList
from serve.auditing import add_audit_routes
from serve.problems import add_problem_handlers
from serve.settings import Settings

from .conftest import assert_problem
from .service import end, start

pytestmark = [pytest.mark.timeout(3000), pytest.mark.live]
SECONDS = 900
"""An audit that takes longer has hung."""
SLOW_PICTURES, BROKEN = 400, 4
ASKED = {"layers": ["layer2"], "dense": True, "max_new_tokens": 12, "queries": ["red"]}
"""Enough to do that an audit can be caught in its middle."""
PATH = "/v1/audits"
Files = dict[str, bytes]


def photos(count: int, broken: int) -> Files:
    """Small pictures by their names; some are no pictures."""
    files = {}
    for index in range(count):
        content = encoded(picture(CAPTIONS[index % len(CAPTIONS)], side=32, seed=index))
        if index % (count // broken) == 7:
            content = content[: len(content) // 3]
        files[f"{index % 3}/été {index}.jpg"] = content
    return files


def zipped(files: Files) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


class Service:
    """The application on a head, and what an operator does to both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (self.port,) = free_ports(1)
        tiny_model(folder / "models").save_pretrained(folder / "models" / "tiny")
        (folder / "roots" / "photos").mkdir(parents=True)
        self.settings: dict[str, Any] = {
            "model": str(folder / "models" / "tiny"),
            "state": str(folder / "state"),
            "audit_roots": str(folder / "roots"),
            "device": "cpu",
            "threads": 1,
            "max_archive_bytes": 3_000_000,
            "max_archive_pictures": 500,
        }
        self.head: Head
        self.client: httpx.Client

    @contextmanager
    def answering(self, **changes: Any) -> Iterator[None]:
        """The routes in this process, without the weight of Serve; jobs run on the head."""
        api = FastAPI()
        settings = {**self.settings, "audit_dashboard": self.head.dashboard, **changes}
        add_audit_routes(api, Settings(**settings))
        add_problem_handlers(api)
        with TestClient(api) as client:
            self.client = client
            yield

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The whole application on Serve."""
        start(self.head, self.port, self.settings)
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120) as client:
            self.client = client
            yield
        end(self.head)

    def show(self, name: str) -> AuditDocument:
        response = self.client.get(f"{PATH}/{name}")
        assert response.status_code == 200, response.text
        return AuditDocument.model_validate_json(response.content)

    def wait(self, name: str, what: Callable[[AuditDocument], bool]) -> AuditDocument:
        """The audit's document when it is so; counts never fall and never exceed the pictures."""
        deadline, seen = time.monotonic() + SECONDS, 0
        while True:
            found = self.show(name)
            done = found.progress.explained + found.progress.failed
            assert done >= seen and done <= (found.progress.pictures or done)
            seen = done
            if what(found):
                return found
            logs = sorted((self.folder / "state" / "audits" / name).glob("job-*.log"))
            assert time.monotonic() < deadline and found.state != "failed", (
                found,
                logs[-1].read_text()[-3000:] if logs else None,
            )
            time.sleep(0.5)

    def begin(self, **changes: Any) -> str:
        """Audit the folder of photos."""
        asked = {"images": str(self.folder / "roots" / "photos"), **ASKED, **changes}
        response = self.client.post(PATH, json=asked)
        assert response.status_code == 202, response.text
        name = response.json()["id"]
        assert response.headers["location"] == f"{PATH}/{name}"
        return name


@pytest.fixture(scope="module")
def files() -> Files:
    return photos(SLOW_PICTURES, BROKEN)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, files: Files) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("audits"))
    for name, content in files.items():
        path = service.folder / "roots" / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with ray_head(cpus=2) as head:
        service.head = head
        yield service


@pytest.fixture
def answering(service: Service) -> Iterator[None]:
    with service.answering():
        yield


def jobs_of(name: str) -> list[Process]:
    """The processes that do an audit."""
    return [p for p in processes() if "serve.audit_job" in p.command and name in p.command]


def finished(document: AuditDocument) -> bool:
    return document.state == "finished"


def begun(document: AuditDocument) -> bool:
    """Some parts are there; more are to come."""
    return document.progress.explained > 0


def assert_accounted(service: Service, document: AuditDocument, files: Files) -> None:
    """Each picture has its rows, or an error, and nothing has both."""
    assert document.results is not None and document.results.report is not None
    found: Counter[str] = Counter()
    for address in document.results.parts:
        response = service.client.get(address)
        assert response.headers["content-type"] == "application/vnd.apache.parquet"
        table = pq.read_table(io.BytesIO(response.content)).to_pylist()
        found.update(row["key"] for row in table)
        assert all(row["source"] == row["key"] and row["layer"] == "layer2" for row in table)
    failed: Counter[str] = Counter()
    for address in document.results.errors:
        content = service.client.get(address).content
        failed.update(row["key"] for row in pq.read_table(io.BytesIO(content)).to_pylist())
        assert str(service.folder).encode() not in content
    assert found + failed == Counter(dict.fromkeys(files, 1))
    assert len(failed) == BROKEN
    progress = document.progress
    assert progress.pictures == len(files)
    assert (progress.explained, progress.failed) == (len(found), len(failed))
    assert progress.failures == {"decode ImageError": BROKEN}
    page = service.client.get(document.results.report)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "sandbox" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert f"{len(found)} pictures are explained, {BROKEN} pictures" in page.text
    assert str(service.folder) not in page.text


def uploaded(service: Service, files: Files) -> AuditDocument:
    """Begin an audit of an archive of the files."""
    fields = {**ASKED, "dense": "true", "max_new_tokens": "12", "title": "Photos of May"}
    archive = {"archive": ("photos.zip", zipped(files | {"notes.txt": b"x"}))}
    response = service.client.post(PATH, files=archive, data=fields)
    assert response.status_code == 202, response.text
    document = AuditDocument.model_validate_json(response.content)
    assert document.state in ("queued", "running") and document.images is None
    assert document.progress.pictures == len(files) and document.progress.ignored == 1
    assert document.options.queries == ("red",) and document.options.dense
    return document


@pytest.mark.parametrize("way", ["answering", "serving"])
def test_an_upload_goes_on_while_the_service_is_restarted(
    service: Service, files: Files, way: str
) -> None:
    with getattr(service, way)():
        name = uploaded(service, files).id
        before = service.wait(name, begun).progress
        conflict = service.client.post(f"{PATH}/{name}/resume")
    with getattr(service, way)():
        assert service.show(name).progress.explained >= before.explained
        document = service.wait(name, finished)
        assert_accounted(service, document, files)
        assert document.title == "Photos of May" and document.problem is None
        assert_problem(conflict, 409, None, "running")
        assert_problem(service.client.post(f"{PATH}/{name}/resume"), 409, None, "finished")


@pytest.mark.usefixtures("answering")
def test_a_job_that_was_killed_is_resumed(service: Service, files: Files) -> None:
    name = service.begin()
    service.wait(name, begun)
    (job,) = jobs_of(name)
    os.kill(job.number, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while service.show(name).state == "running":
        assert time.monotonic() < deadline
        time.sleep(0.5)
    document = service.show(name)
    assert document.state == "failed" and "killed" in (document.problem or "")
    done = document.progress.explained
    assert 0 < done < len(files)
    response = service.client.post(f"{PATH}/{name}/resume")
    assert response.status_code == 202 and response.json()["state"] in ("queued", "running")
    assert response.json()["progress"]["explained"] >= done
    assert_accounted(service, service.wait(name, finished), files)


@pytest.mark.usefixtures("answering")
def test_what_the_job_finds_out_is_told_without_paths(service: Service) -> None:
    name = service.begin(max_new_tokens=200)  # more than the language model's context
    deadline = time.monotonic() + SECONDS
    while (document := service.show(name)).state in ("queued", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert document.state == "failed" and "max_new_tokens is 200" in (document.problem or "")
    assert "Traceback" not in (document.problem or "")
    assert str(service.folder) not in (document.problem or "")


@pytest.mark.usefixtures("answering")
def test_deleting_an_audit_that_runs(service: Service) -> None:
    name = service.begin()
    service.wait(name, begun)
    response = service.client.delete(f"{PATH}/{name}")
    assert response.status_code == 204 and not response.content
    assert not jobs_of(name)
    assert not list((service.folder / "state" / "audits").glob(f"*{name}*"))
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/resume"),
        ("GET", "/files/index.html"),
    ):
        answer = service.client.request(method, f"{PATH}/{name}{path}")
        assert_problem(answer, 404, None, "no such audit")


@pytest.mark.usefixtures("answering")
def test_lists_have_pages(service: Service) -> None:
    def listed(**query: Any) -> list[AuditDocument]:
        response = service.client.get(PATH, params=query)
        assert response.status_code == 200, response.text
        return AuditList.model_validate_json(response.content).audits

    names = [document.id for document in listed()]
    assert len(names) >= 3 and names == sorted(names, reverse=True)
    assert [document.id for document in listed(limit=2)] == names[:2]
    assert [document.id for document in listed(limit=2, before=names[1])] == names[2:4]
    assert all(document.results is None for document in listed())
    for query in ({"limit": 0}, {"limit": 101}, {"limit": "x"}, {"limit": 5, "other": 1}):
        (field,) = [key for key in query if key != "limit"] or ["limit"]
        assert_problem(service.client.get(PATH, params=query), 422, field)


@pytest.mark.usefixtures("answering")
def test_requests_that_begin_nothing(service: Service, files: Files) -> None:
    before = service.client.get(PATH).json()
    root = str(service.folder / "roots" / "photos")
    (service.folder / "roots" / "out").symlink_to(service.folder / "models")
    (service.folder / "roots" / "empty").mkdir()
    for changes, status, field in (
        ({"images": "/etc"}, 403, "images"),
        ({"images": f"{root}/../../models"}, 403, "images"),
        ({"images": str(service.folder / "roots" / "out")}, 403, "images"),
        ({"images": "s3://bucket/x"}, 403, "images"),
        ({"images": "photos"}, 403, "images"),
        ({"images": str(service.folder / "roots" / "empty")}, 422, "images"),
        ({"images": f"{root}/nowhere"}, 422, "images"),
        ({"layers": ["layer9"]}, 422, "layers"),
        ({"model": "another"}, 422, "model"),
        ({"queries": [" "]}, 422, "queries"),
        ({"queries": ["a"] * 65}, 422, "queries"),
        ({"queries": ["a"], "calibration": "contrast"}, 422, "calibration"),
        ({"smoothing": 2}, 422, "smoothing"),
        ({"max_new_tokens": 0}, 422, "max_new_tokens"),
        ({"dense": "no"}, 422, "dense"),
        ({"output": "/etc"}, 422, "output"),
    ):
        answer = service.client.post(PATH, json={"images": root, **ASKED, **changes})
        assert_problem(answer, status, field)
        assert str(service.folder) not in answer.text
    post = service.client.post
    for content, word in (
        (b"no archive", "damaged"),
        (zipped({"../x.jpg": b"x"}), "leads out"),
        (zipped({"x.txt": b"x"}), "no pictures"),
        (zipped({f"{i}.jpg": b"" for i in range(501)}), "more than 500 pictures"),
    ):
        assert_problem(post(PATH, files={"archive": content}), 422, "archive", word)
    assert_problem(post(PATH, files={"archive": b"x" * 3_000_001}), 413, None, "3,000,000")
    assert_problem(post(PATH, files={"image": b"x"}), 422, "image")
    assert_problem(post(PATH, data={"archive": "text"}), 415, None, "multipart")
    assert_problem(
        post(PATH, content=b"{", headers={"content-type": "application/json"}), 400, None
    )
    assert service.client.get(PATH).json() == before
    folders = (service.folder / "state" / "audits").iterdir()
    assert sorted(f.name for f in folders) == sorted(a["id"] for a in before["audits"])


def test_an_audit_outlives_its_cluster(service: Service, files: Files) -> None:
    """The last one: the head that the others use is gone after it."""
    with service.answering():
        name = service.begin()
        before = service.wait(name, begun).progress
    kill_marked(service.head.folder)
    with ray_head(cpus=2) as other:
        service.head = other
        with service.answering(resume_audits=False):
            document = service.show(name)
            assert document.state == "stopped"
            assert document.progress.explained >= before.explained
        with service.answering():  # which is the default
            deadline = time.monotonic() + 120
            while service.show(name).state == "stopped":
                assert time.monotonic() < deadline
                time.sleep(0.5)
            assert_accounted(service, service.wait(name, finished), files)
