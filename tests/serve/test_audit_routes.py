"""The routes of audits over HTTP, with a job server that runs nothing: bodies, limits, ends."""

import io
import json
import os
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from job_server import Server

from devil.audit_parts import Part
from devil.client.audits import GONE
from devil.errors import ModelFolderError
from serve import audit_job, audit_maker, auditing
from serve.audit_folder import AuditFolder, End
from serve.auditing import Auditing, add_audit_routes
from serve.audits import FRUITLESS, KILLED, Audits
from serve.jobs import Job
from serve.problems import add_problem_handlers
from serve.settings import Settings

UNKNOWN = "20260101T000000000000-00000000"


class Service:
    """The routes in this process."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        (folder / "tiny").mkdir()
        config = {"name": "tiny", "version": "v", "layers": {"layer3": [1, 2, 2]}}
        (folder / "tiny" / "config.json").write_text(json.dumps(config))
        self.photos = folder / "roots" / "photos"
        self.photos.mkdir(parents=True)
        (self.photos / "a.jpg").write_bytes(b"x")
        settings = {
            "model": str(folder / "tiny"),
            "state": str(folder / "state"),
            "audit_roots": str(folder / "roots"),
        }
        api = FastAPI()
        self.auditing: Auditing = add_audit_routes(api, Settings(**{**settings, **changes}))
        add_problem_handlers(api)
        self.jobs = Server()
        self.audits = Audits(settings["state"], self.jobs)
        self.auditing.audits = self.auditing._maker.audits = self.audits
        self.client = TestClient(api)

    def post(self, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/audits", json={"images": str(self.photos), **fields})

    def upload(self, content: bytes, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/audits", files={"archive": content}, data=fields)

    def begun(self) -> str:
        """The id of a new audit, whose job runs."""
        answer = self.post(queries=["dog"])
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path, max_audits=2, max_archive_bytes=20_000, max_unpacked_bytes=5000)
    with made.client:
        yield made


def zipped(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"{name}.jpg", content)
    return stream.getvalue()


def problem(answer: httpx.Response, status: int, text: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert text in answer.json()["detail"]


def test_an_audit_of_an_address_from_its_beginning_to_its_end(service: Service) -> None:
    answer = service.post(queries=["dog"], layers=["layer3"], title="Fur")
    assert answer.status_code == 202, answer.text
    made = answer.json()
    assert answer.headers["location"] == f"/v1/audits/{made['id']}"
    assert (made["state"], made["title"], made["model"]) == ("queued", "Fur", "tiny")
    assert made["images"] == str(service.photos) and made["options"]["queries"] == ["dog"]
    assert service.jobs.asked == [f"audit-{made['id']}-1"]
    path = answer.headers["location"]
    assert service.client.get(path).json()["state"] == "running"
    problem(service.client.post(f"{path}/resume"), 409, "The audit is running")

    folder = service.audits.folder(made["id"])
    (folder.output / "errors").mkdir(parents=True)
    (folder.output / "index.html").write_text("<p>report")
    table = pa.table({"key": pa.array([], pa.string())})
    found = Part(("a.jpg",), 1, 0, {})
    for part in (folder.output / "part-0.parquet", folder.output / "errors" / "part-0.parquet"):
        pq.write_table(table.replace_schema_metadata(found.metadata()), part)
    folder.write_end(1, End("finished", None))
    done = service.client.get(path).json()
    assert done["state"] == "finished" and done["progress"]["explained"] == 1
    report = service.client.get(done["results"]["report"])
    assert report.text == "<p>report" and "sandbox" in report.headers["content-security-policy"]
    beyond = service.client.get(done["results"]["report"], headers={"range": "bytes=9-"})
    problem(beyond, 416, "the file has 9 bytes")
    part = service.client.get(done["results"]["parts"][0])
    assert pq.read_table(io.BytesIO(part.content)).column_names == ["key"]
    problem(service.client.get(f"{path}/files/part-9.parquet"), 404, "no such file")
    problem(service.client.post(f"{path}/resume"), 409, "The audit is finished")
    assert service.client.delete(path).status_code == 204
    problem(service.client.get(path), 404, GONE)
    problem(service.client.delete(path), 404, GONE)


def test_an_upload_is_unpacked(service: Service) -> None:
    answer = service.upload(zipped(a=b"one", b=b"two"), queries=["dog", "cat"], title="Fur")
    assert answer.status_code == 202, answer.text
    made = answer.json()
    assert made["images"] is None and made["progress"]["pictures"] == 2
    assert made["options"]["queries"] == ["dog", "cat"]
    pictures = Path(service.audits.folder(made["id"]).request().address)
    assert sorted(path.name for path in pictures.iterdir()) == ["a.jpg", "b.jpg"]


def test_bodies_that_are_refused_leave_nothing(service: Service) -> None:
    photos = str(service.photos)
    problem(service.post(images="/etc"), 403, "not under a folder")
    problem(service.post(images=f"{photos}/../../state"), 403, "not under a folder")
    problem(service.post(images=f"{photos}/deep"), 422, "no jpg")
    problem(service.post(layers=["layer9"]), 422, "layer3, all")
    problem(service.post(max_new_tokens="many"), 422, "max_new_tokens")
    problem(service.post(model="other"), 422, "there are tiny")
    problem(service.client.post("/v1/audits", content=b"x"), 415, "application/json")
    problem(service.upload(b"no archive"), 422, "archive")
    problem(service.upload(bytes(30_000)), 413, "20")
    problem(service.upload(zipped(a=bytes(6000))), 422, "5,000")
    assert service.jobs.asked == [] and list(service.audits.names()) == []
    assert not [path for path in service.audits.root.glob("*") if path.name[0] == "."]


def test_only_so_many_audits_run(service: Service) -> None:
    first, _ = service.begun(), service.begun()
    problem(service.post(), 429, "2 audits run or wait")
    service.jobs.known[f"audit-{first}-1"] = Job("failed", 1)
    assert service.client.get(f"/v1/audits/{first}").json()["problem"] == KILLED
    third = service.begun()
    problem(service.client.post(f"/v1/audits/{first}/resume"), 429, "2 audits run or wait")
    assert service.client.delete(f"/v1/audits/{third}").status_code == 204
    assert service.client.post(f"/v1/audits/{first}/resume").status_code == 202
    assert service.jobs.asked[-1] == f"audit-{first}-2"


def test_only_so_many_audits_are_started_at_once(service: Service) -> None:
    names = [service.begun(), service.begun()]
    for name in names:
        service.jobs.known[f"audit-{name}-1"] = Job("failed", 1)
    service.begun()
    submit, both = service.jobs.submit, threading.Barrier(2)

    def late(*arguments: Any) -> None:
        with suppress(threading.BrokenBarrierError):  # one waits in vain, for no other is started
            both.wait(2)
        submit(*arguments)

    service.jobs.submit = late  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        paths = [f"/v1/audits/{name}/resume" for name in names]
        answers = list(pool.map(service.client.post, paths))
    assert sorted(answer.status_code for answer in answers) == [202, 429]
    assert service.audits.active() == 2 and service.auditing._starting == 0


def test_only_so_many_uploads_come_in(service: Service) -> None:
    service.auditing._uploads = service.auditing.settings.max_uploads
    problem(service.post(), 429, "4 uploads are coming in")


def test_an_upload_that_does_not_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(tmp_path, upload_seconds=0.05)

    async def never(*_: Any) -> None:
        await auditing.asyncio.Event().wait()

    monkeypatch.setattr(auditing, "read_audit_body", never)
    problem(service.post(), 408, "did not arrive within 0.05 s")


def test_a_full_disk_is_told_and_leaves_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as unpacking:
        unpacking.setattr(audit_maker, "unpack", full)
        problem(service.upload(zipped(a=b"one")), 503, "no room for the archive")
    monkeypatch.setattr(auditing, "read_audit_body", full)
    problem(service.upload(zipped(a=b"one")), 503, "no room for the archive")
    assert list(service.audits.names()) == []


def test_the_list_begins_with_the_newest(service: Service) -> None:
    first, second = service.begun(), service.begun()
    listed = service.client.get("/v1/audits").json()["audits"]
    assert [audit["id"] for audit in listed] == [second, first]
    assert listed[0]["results"] is None
    older = service.client.get("/v1/audits", params={"before": second, "limit": 1}).json()
    assert [audit["id"] for audit in older["audits"]] == [first]
    problem(service.client.get("/v1/audits", params={"limit": "all"}), 422, "limit")


def test_a_job_that_does_not_stop_is_not_deleted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "STOP_SECONDS", 0.1)
    name = service.begun()
    service.jobs.stubborn = True
    problem(service.client.delete(f"/v1/audits/{name}"), 503, "has not stopped yet")
    assert service.client.get(f"/v1/audits/{name}").json()["state"] == "cancelled"
    service.jobs.stubborn = False
    service.auditing._go_on_now()  # what an application does as it starts
    problem(service.client.get(f"/v1/audits/{name}"), 404, "no such audit")


@pytest.mark.parametrize(
    ("job", "end"),
    [
        (Job("stopped"), End("stopped", None)),
        (Job("failed", None), End("stopped", None)),  # its node went away
        (Job("failed", 137), End("failed", KILLED)),
        (Job("succeeded", 0), End("failed", KILLED)),  # and did not say that it had finished
    ],
)
def test_the_end_of_a_job_that_said_nothing(service: Service, job: Job, end: End) -> None:
    name = service.begun()
    service.jobs.known[f"audit-{name}-1"] = job
    assert service.audits.state(name) == end
    service.jobs.known.clear()  # Ray forgets its jobs
    assert service.audits.state(name) == end


def test_an_audit_that_kills_its_job_is_given_up(service: Service) -> None:
    """Else it would do so again at every start of the application."""
    name = service.begun()
    for _ in range(FRUITLESS + 2):
        service.jobs.known.clear()
        service.auditing._go_on_now()
    assert len(service.jobs.asked) == 1 + FRUITLESS
    assert service.client.get(f"/v1/audits/{name}").json()["state"] == "stopped"
    # Somebody who asks for it gets another try, and a part that comes out counts anew.
    assert service.client.post(f"/v1/audits/{name}/resume").status_code == 202
    output = service.audits.folder(name).output
    output.mkdir()
    table = pa.table({"key": pa.array([], pa.string())})
    pq.write_table(table, output / "part-0.parquet")
    service.jobs.known.clear()
    service.auditing._go_on_now()
    assert len(service.jobs.asked) == 3 + FRUITLESS


def test_an_audit_that_goes_on_by_itself_is_not_resumed_beside(service: Service) -> None:
    name = service.begun()
    service.jobs.known.clear()
    submit = service.jobs.submit
    answers: list[httpx.Response] = []

    def during(*arguments: Any) -> None:
        service.jobs.submit = submit  # type: ignore[method-assign]
        answers.append(service.client.post(f"/v1/audits/{name}/resume"))
        answers.append(service.client.delete(f"/v1/audits/{name}"))
        submit(*arguments)

    service.jobs.submit = during  # type: ignore[method-assign]
    service.auditing._go_on_now()
    for answer in answers:
        problem(answer, 409, "being resumed or deleted already")
    assert service.client.delete(f"/v1/audits/{name}").status_code == 204


def test_what_a_request_changes_does_not_go_on_by_itself(service: Service) -> None:
    name = service.begun()
    service.jobs.known.clear()
    with service.auditing._alone(name):
        service.auditing._go_on_now()
    assert len(service.jobs.asked) == 1


def test_what_another_left_half_unpacked_goes_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "REPORT_SECONDS", 0.02)
    service = Service(tmp_path)
    with service.client:
        name = service.begun()
        half, young = service.audits.incoming("old"), service.audits.incoming("young")
        os.utime(half, (0, 0))
        deadline = time.monotonic() + 60
        while half.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert young.exists() and service.audits.place(name).exists()


def test_what_the_job_writes_down(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    folder: AuditFolder = service.audits.folder(service.begun())
    monkeypatch.setattr(audit_job, "audit", lambda options: None)
    assert audit_job.main(folder, 1) == 0
    assert folder.end() == End("finished", None)

    def fail(error: Exception) -> Any:
        def audit(options: Any) -> None:
            raise error

        return audit

    told = ModelFolderError(f"{folder.request().model_folder} lacks config.json")
    monkeypatch.setattr(audit_job, "audit", fail(told))
    assert audit_job.main(folder, 1) == 1
    assert folder.end() == End("failed", "<tiny> lacks config.json")
    monkeypatch.setattr(audit_job, "audit", fail(RuntimeError("in /secret/place")))
    assert audit_job.main(folder, 1) == 1
    assert folder.end() == End("failed", audit_job.OURS)
