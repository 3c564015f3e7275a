"""An audit's folder, what is told of a failure, and what is refused before anything begins."""

import json
import shutil
import socket
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_server import NOBODY, Server

from devil.audit_parts import Part
from devil.client.audits import file_name
from devil.errors import StorageError
from serve import audit_folder, jobs
from serve.audit_checks import check_options, check_pictures, read_model_facts
from serve.audit_folder import (
    ATTEMPT,
    PLAN,
    REPORT,
    REQUEST,
    Attempt,
    AuditFolder,
    End,
    Request,
)
from serve.audit_job import options
from serve.audit_schemas import AuditDocument, AuditOptions, State
from serve.auditing import CLOSED, Auditing, _policy
from serve.audits import ID, Audits, UnknownAuditError, new_id
from serve.jobs import Job, Jobs, JobServerError
from serve.problems import ProblemError
from serve.roots import Place
from serve.settings import Settings
from serve.telling import told


def request(name: str, **changes: object) -> Request:
    values: dict[str, object] = {
        "id": name,
        "created": "2026-01-01T00:00:00+00:00",
        "title": "t",
        "model": "tiny",
        "version": "v",
        "model_folder": "/models/tiny",
        "images": None,
        "address": "/pictures",
        "inside": "/pictures",
        "options": AuditOptions().model_dump(),  # type: ignore[call-arg]
        "max_pixels": 1000,
    }
    return Request(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def audits(tmp_path: Path) -> Audits:
    return Audits(str(tmp_path), Jobs(NOBODY))


@pytest.fixture
def folder(audits: Audits) -> AuditFolder:
    """An audit of an upload, before its first attempt."""
    name = new_id()
    incoming = audits.incoming(name)
    AuditFolder(incoming).write_request(request(name, pictures=9, ignored=1))
    incoming.rename(audits.place(name))
    return audits.folder(name)


def write_part(folder: AuditFolder, name: str, part: Part) -> None:
    (folder.output / "errors").mkdir(parents=True, exist_ok=True)
    table = pa.table({"key": pa.array([], pa.string())})
    for path in (folder.output / name, folder.output / "errors" / name):
        pq.write_table(table.replace_schema_metadata(part.metadata()), path)


def test_progress_is_read_from_the_parts(folder: AuditFolder) -> None:
    asked = folder.request()
    assert folder.progress(asked, "queued").model_dump() == {
        "pictures": 9,
        "explained": 0,
        "failed": 0,
        "failures": {},
        "ignored": 1,
    }
    write_part(folder, "part-0.parquet", Part(("a", "b"), 1, 1, {"decode E": 1}))
    write_part(folder, "part-1.parquet", Part(("c",), 3, 0, {}))
    (folder.output / "part-2.parquet").write_text("half a part")
    (folder.output / ".part-3.parquet.x.tmp").write_text("not yet")
    (folder.output / PLAN).write_text(json.dumps({"pictures": None, "units": 3}))
    found = folder.progress(asked, "running")
    assert (found.pictures, found.explained, found.failed) == (None, 4, 1)
    assert found.failures == {"decode E": 1}
    assert folder.progress(asked, "finished").pictures == 5
    write_part(folder, "part-0.parquet", Part(("a", "b", "d"), 3, 0, {}))
    again = folder.progress(asked, "running")
    assert (again.explained, again.failed) == (6, 0)


def test_a_part_out_of_reach_is_not_counted_and_ends_nothing(
    folder: AuditFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("part-0.parquet", "part-1.parquet"):
        write_part(folder, name, Part(("a.png",), 1, 0, {}))
    read = audit_folder.read_part

    def fails(fs: object, path: str) -> Part:
        if path.endswith("part-0.parquet"):
            raise StorageError(f"{path} cannot be used")
        return read(fs, path)  # type: ignore[arg-type]

    monkeypatch.setattr(audit_folder, "read_part", fails)
    assert folder.progress(folder.request(), "running").explained == 1


def test_results_are_what_is_there_and_nothing_else_is_served(folder: AuditFolder) -> None:
    write_part(folder, "part-a.parquet", Part((), 0, 0, {}))
    (folder.output / REPORT).write_text("page")
    (folder.output / "part-link.parquet").symlink_to(folder.path / "request.json")
    (folder.output / "part-folder.parquet").mkdir()
    assert folder.results("/x", "running").report is None
    found = folder.results("/x", "finished")
    assert found.report == "/x/index.html" and "/x/part-a.parquet" in found.parts
    assert found.errors == ["/x/errors/part-a.parquet"]
    for name in ("index.html", "part-a.parquet", "errors/part-a.parquet"):
        assert folder.result(name) == folder.output / name
    for name in (
        "",
        "errors",
        "plan.json",
        "../request.json",
        "../output/index.html",
        "errors/../index.html",
        "errors/index.html",
        "part-../part-a.parquet",
        "part-%2e%2e.parquet",
        "errors//part-a.parquet",
        "/etc/passwd",
        "part-link.parquet",
        "part-folder.parquet",
        "part-b.parquet",
        ".part-a.parquet",
    ):
        assert folder.result(name) is None, name


def test_results_with_uncommon_names_can_be_fetched(folder: AuditFolder) -> None:
    name = "part-é (1)#?.parquet"
    write_part(folder, name, Part((), 0, 0, {}))
    found = folder.results("/v1/audits/x/files", "finished")
    assert [file_name(address) for address in found.parts] == [name]
    assert [file_name(address) for address in found.errors] == [f"errors/{name}"]
    assert folder.result(name) == folder.output / name


PIECES = ["..", ".", "", "errors", "output", "part-x.parquet", "index.html", "%2e%2e", "\\", "\0"]


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("/".join))
def test_no_name_leads_out_of_the_output(tmp_path_factory: pytest.TempPathFactory, name: str):
    folder = AuditFolder(tmp_path_factory.getbasetemp() / "served")
    (folder.output / "errors").mkdir(parents=True, exist_ok=True)
    secrets = [folder.path / "part-x.parquet", folder.path / "index.html"]
    served = [folder.output / "part-x.parquet", folder.output / "errors" / "part-x.parquet"]
    for path in (*secrets, *served):
        path.write_text("here")
    found = folder.result(name)
    assert found is None or found.resolve() in [path.resolve() for path in served]
    assert folder.result("part-x.parquet") == served[0]


def test_an_end_is_that_of_the_last_attempt(folder: AuditFolder, audits: Audits) -> None:
    name = folder.request().id
    assert audits.state(name) == End("stopped", None)  # the application died before
    folder.write_attempt(Attempt(number=1, submitted="now"))
    with pytest.raises(JobServerError, match="cannot be reached"):
        audits.state(name)
    assert audits.document(name, begun=True).state == "queued"  # the client must not begin again
    folder.write_end(1, End("failed", "why"))
    assert audits.state(name) == End("failed", "why")
    assert audits.document(name).problem == "why"
    folder.write_attempt(Attempt(number=2, submitted="now"))
    assert folder.end() is None
    folder.write_end(2, End("finished", None))
    document = audits.document(name)
    assert document.state == "finished" and document.images is None
    assert AuditDocument.model_validate_json(document.model_dump_json()) == document
    assert audits.document(name, results=False).results is None
    assert not audits.is_lost(name) and audits.active() == 0
    states = dict.fromkeys(get_args(State), 0)
    assert audits.counts() == {**states, "finished": 1}
    damaged = audits.root / new_id()
    damaged.mkdir()
    for file in (REQUEST, ATTEMPT):
        (damaged / file).write_text("")  # the others are counted, and go on, all the same
    assert audits.counts() == {**states, "finished": 1, "failed": 1}
    assert not audits.is_lost(damaged.name)
    shutil.rmtree(damaged)
    folder.cancel()
    assert audits.state(name).state == "cancelled" and not audits.is_lost(name)
    assert audits.delete(name, 1)
    assert list(audits.root.iterdir()) == []
    with pytest.raises(UnknownAuditError):
        audits.state(name)


def test_an_audit_whose_job_cannot_be_started_leaves_nothing(audits: Audits) -> None:
    name = new_id()
    incoming = audits.incoming(name)
    with pytest.raises(JobServerError):
        audits.add(request(name), incoming)
    assert list(audits.root.iterdir()) == []


def test_a_silent_job_server_keeps_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asking = Jobs(f"http://127.0.0.1:{silent.getsockname()[1]}")
        for _ in range(2 * jobs.THREADS):
            with pytest.raises(JobServerError):
                asking.check()
        assert asking._pool.submit(int).result(timeout=10) == 0


def test_a_job_that_was_asked_for_twice_has_one_name(folder: AuditFolder, tmp_path: Path) -> None:
    server = Server()
    audits = Audits(str(tmp_path), server)
    name = folder.request().id
    server.silent = True
    with pytest.raises(JobServerError):
        audits.start(name)
    server.silent = False
    audits.start(name)
    assert server.asked == [f"audit-{name}-1"] * 2 and audits.state(name).state == "running"
    server.known[f"audit-{name}-1"] = Job("stopped")
    audits.start(name)
    assert server.asked[2:] == [f"audit-{name}-2"]


def test_one_audit_that_is_damaged_keeps_none_from_going_on(
    folder: AuditFolder, tmp_path: Path
) -> None:
    auditing = Auditing(Settings(model="m", state=str(tmp_path)))
    auditing.audits = audits = Audits(str(tmp_path), server := Server())
    for content in (None, "{"):
        damaged = audits.root / new_id()
        damaged.mkdir()
        if content:
            (damaged / REQUEST).write_text("{}")
            (damaged / ATTEMPT).write_text(content)
            AuditFolder(damaged).cancel()
    auditing._go_on_now()
    assert server.asked == [f"audit-{folder.path.name}-1"]


def test_a_removed_audit_does_not_come_back(folder: AuditFolder, audits: Audits) -> None:
    shutil.rmtree(folder.path)
    for write in (
        lambda: folder.write_end(1, End("finished", None)),
        lambda: folder.write_attempt(Attempt(number=1, submitted="now")),
    ):
        with pytest.raises(FileNotFoundError):
            write()
    assert list(audits.names()) == [] and not folder.path.exists()


def test_what_was_left_half_done_is_swept(audits: Audits, folder: AuditFolder) -> None:
    young = audits.incoming("young")
    (audits.root / ".removed-x").mkdir()
    audits.sweep()
    assert sorted(audits.root.iterdir()) == sorted([young, folder.path])
    assert list(audits.names()) == [folder.path.name]


@pytest.mark.parametrize("name", ["", "..", "x", "../audits", "20260101T000000000000-00000000"])
def test_unknown_ids(audits: Audits, folder: AuditFolder, name: str) -> None:
    with pytest.raises(UnknownAuditError):
        audits.folder(name)


def test_ids_sort_by_time(audits: Audits) -> None:
    names = [new_id() for _ in range(5)]
    assert all(ID.fullmatch(name) for name in names) and names == sorted(names)
    for name in names:
        audits.place(name).mkdir(parents=True)
        AuditFolder(audits.place(name)).write_request(request(name))
    assert list(audits.names(before=names[3])) == names[2::-1]


def test_what_is_told_of_a_failure_has_no_paths() -> None:
    known = {"/srv/models/0001": "tiny", "/srv/photos": "/data/photos", "/srv/up": "pictures"}
    message = "model folder /srv/models/0001 lacks ['x']; see /srv/photos/a b.jpg, '/home/.x/y.z'"
    found = told(message, known)
    assert "/srv" not in found and "/home" not in found
    assert "<tiny>" in found and "y.z" in found
    assert told("s3://bucket/x/y is not there", {}) == "s3://bucket/x/y is not there"
    assert told("1/2 of 3 and/or 4", {}) == "1/2 of 3 and/or 4"
    assert len(told("x" * 9000, {})) == 2000


def test_the_job_is_asked_what_the_client_asked(folder: AuditFolder) -> None:
    asked = AuditOptions(queries=["dog"], layers=["all"], max_new_tokens=7)  # type: ignore[call-arg]
    found = options(folder, request("x", options=asked.model_dump(), max_pixels=5))
    assert found.decoding.max_new_tokens == 7
    assert found.audit.queries == ("dog",) and found.audit.layers == ("all",)
    assert found.audit.max_pixels == 5 and found.inside == "/pictures"


def test_options_that_the_model_cannot_answer(tmp_path: Path) -> None:
    config = {"name": "tiny", "version": "v", "layers": {"layer3": [1, 2, 2]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = read_model_facts("tiny", str(tmp_path))
    assert facts == ("tiny", str(tmp_path), "v", ["layer3"])
    make = AuditOptions.model_validate
    check_options(make({"layers": ("layer3", "all"), "calibration": "none"}), facts.layers)
    with pytest.raises(ProblemError, match="layer3, all"):
        check_options(make({"layers": ("layer9",)}), facts.layers)
    with pytest.raises(ProblemError, match="contrast"):
        check_options(make({"queries": ("a",), "calibration": "contrast"}), facts.layers)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ProblemError, match="cannot be read"):
        read_model_facts("tiny", str(tmp_path))


def test_an_address_without_pictures(tmp_path: Path) -> None:
    place = Place(address=str(tmp_path), inside=str(tmp_path))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "notes.txt").write_text("x")
    for empty in (place, Place(address=f"{tmp_path}/nowhere", inside=str(tmp_path))):
        with pytest.raises(ProblemError, match="no jpg") as caught:
            check_pictures(empty)
        assert caught.value.refusal.field == "images"
    (tmp_path / "deep" / "A.JPG").write_text("x")
    check_pictures(place)
    with pytest.raises(ProblemError, match="storage"):  # its package is not installed
        check_pictures(Place(address="dropbox://x/y", inside=None))


def test_the_reports_own_policy_is_sent(tmp_path: Path) -> None:
    from devil.report.page import report_html

    (tmp_path / "a.html").write_text(report_html(title='"><script>alert(1)</script>'))
    policy = _policy(tmp_path / "a.html")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy and policy.endswith("sandbox allow-scripts")
    (tmp_path / "b.html").write_text("<script>alert(1)</script>")
    assert _policy(tmp_path / "b.html").startswith(f"{CLOSED}; frame-ancestors 'none'")
