"""Files of the state as answers: whole, in part, gone meanwhile, and ranges that cannot be sent."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serve.kept import Kept, add_kept_routes
from serve.openapi import describe_api
from serve.problems import ProblemError, add_problem_handlers
from serve.sending import StateFile

from .conftest import assert_problem

CONTENT = b"0123456789"


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(str(tmp_path), 3)


@pytest.fixture
def client(kept: Kept) -> Iterator[TestClient]:
    api = FastAPI()
    add_kept_routes(api, kept)
    add_problem_handlers(api)
    describe_api(api)
    with TestClient(api) as client:
        yield client


@pytest.fixture(params=["", "/picture"])
def path(request: pytest.FixtureRequest, kept: Kept) -> str:
    """Of an explanation, and of its picture."""
    return f"/v1/explanations/{kept.keep(CONTENT, CONTENT)}{request.param}"


def test_a_file_is_sent_whole_and_in_part(client: TestClient, path: str) -> None:
    whole = client.get(path)
    assert whole.content == CONTENT and whole.headers["content-length"] == "10"
    part = client.get(path, headers={"range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")
    assert part.headers["content-range"] == "bytes 2-4/10"


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=10-12", "bytes=1-2,99-"])
def test_ranges_beyond_the_end(client: TestClient, path: str, asked: str) -> None:
    answer = client.get(path, headers={"range": asked})
    assert_problem(answer, 416, None, asked, "10 bytes")
    assert answer.headers["content-range"] == "bytes */10"


@pytest.mark.parametrize("asked", ["2-4", "lines=2-4", "bytes=", "bytes=x-y", "bytes=4-2"])
def test_ranges_that_are_none(client: TestClient, path: str, asked: str) -> None:
    assert_problem(client.get(path, headers={"range": asked}), 400, None, asked, "bytes=FIRST-LAST")


def test_a_file_that_went_before_it_is_looked_at(
    client: TestClient, path: str, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = kept.find

    def last(name: str) -> Path:
        found = find(name)
        shutil.rmtree(found)
        return found

    monkeypatch.setattr(kept, "find", last)
    assert_problem(client.get(path), 404, "id", "no explanation is kept")


def test_a_file_that_went_before_it_is_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)

    class Removed(StateFile):
        def set_stat_headers(self, *given: object) -> None:
            super().set_stat_headers(*given)  # type: ignore[arg-type]
            (tmp_path / "file").unlink()

    api = FastAPI()
    add_problem_handlers(api)
    api.add_api_route("/file", lambda: Removed(tmp_path / "file", ProblemError(404, "It went.")))
    assert_problem(TestClient(api).get("/file"), 404, None, "It went.")


def test_answers_to_ranges_are_described(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for ending in ("", "/picture"):
        assert {"400", "416"} <= set(paths["/v1/explanations/{id}" + ending]["get"]["responses"])
    assert "416" not in paths["/v1/explanations/{id}.png"]["get"]["responses"]
