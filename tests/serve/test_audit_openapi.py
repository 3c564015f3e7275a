"""The routes for audits as documented: every answer, every error, examples that hold."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serve.audit_schemas import AuditDocument, AuditList, AuditRequest
from serve.auditing import add_audit_routes
from serve.openapi import describe_api
from serve.problems import add_problem_handlers
from serve.settings import Settings

NOBODY = "http://127.0.0.1:9"
"""Where no job server is."""

ROUTES = {
    ("post", "/v1/audits"): {202, 400, 403, 408, 413, 415, 422, 429, 500, 503},
    ("get", "/v1/audits"): {200, 422, 500, 503},
    ("get", "/v1/audits/{audit}"): {200, 404, 500, 503},
    ("delete", "/v1/audits/{audit}"): {204, 404, 409, 500, 503},
    ("post", "/v1/audits/{audit}/resume"): {202, 404, 409, 429, 500, 503},
    ("get", "/v1/audits/{audit}/files/{name}"): {200, 400, 404, 416, 500},
}


@pytest.fixture(scope="module")
def paths() -> dict[str, Any]:
    api = FastAPI()
    add_audit_routes(api, Settings(state="nowhere"))  # type: ignore[call-arg]
    describe_api(api)
    return api.openapi()["paths"]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_answer_is_described(paths: dict[str, Any], method: str, path: str) -> None:
    responses = paths[path][method]["responses"]
    # FastAPI's own 422 of path parameters never leaves: they are texts.
    assert {int(status) for status in responses} - {422} == ROUTES[method, path] - {422}
    for status, response in responses.items():
        if int(status) >= 400 and int(status) != 422:
            (content,) = response["content"].values()
            assert content["example"]["status"] == int(status)


def test_examples_are_valid(paths: dict[str, Any]) -> None:
    post = paths["/v1/audits"]["post"]
    bodies = post["requestBody"]["content"]
    AuditRequest.model_validate(bodies["application/json"]["example"])
    assert "archive" in bodies["multipart/form-data"]["schema"]["required"]
    for route in (post, paths["/v1/audits/{audit}/resume"]["post"]):
        answer = route["responses"]["202"]
        AuditDocument.model_validate(answer["content"]["application/json"]["example"])
        assert "Location" in answer["headers"]
    listed = paths["/v1/audits"]["get"]
    AuditList.model_validate(listed["responses"]["200"]["content"]["application/json"]["example"])
    assert [p["name"] for p in listed["parameters"]] == ["limit", "before"]
    files = paths["/v1/audits/{audit}/files/{name}"]["get"]["responses"]["200"]["content"]
    assert {"text/html", "application/vnd.apache.parquet"} <= set(files)


def test_the_routes_load_no_torch() -> None:
    program = "import sys, serve.auditing; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_without_a_job_server_nothing_is_begun(tmp_path: Path) -> None:
    api = FastAPI()
    settings = Settings.model_validate({"state": str(tmp_path), "audit_dashboard": NOBODY})
    add_audit_routes(api, settings)
    add_problem_handlers(api)
    with TestClient(api) as client:
        assert client.get("/v1/audits").json() == {"audits": []}
        answer = client.post("/v1/audits", json={"images": "/etc"})
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert answer.json()["detail"] == "Ray's job server cannot be reached."
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/resume"), ("GET", "/files/x")):
            answer = client.request(method, f"/v1/audits/20260101T000000000000-00000000{path}")
            assert answer.status_code == 404
            assert answer.headers["content-type"] == "application/problem+json"
    assert list(tmp_path.iterdir()) == []
