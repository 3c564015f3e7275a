"""Faults of ours on real Serve: the log has the reason, the client has not."""

import logging

import httpx
import pytest
import ray.serve
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serve.problems import MEDIA_TYPE, add_problem_handlers, internal_error


@pytest.fixture(scope="module")
def faulty(address: str):
    """Where an application answers whose only route fails."""

    def build() -> FastAPI:
        api = FastAPI()
        add_problem_handlers(api)

        @api.get("/fault")
        async def fault() -> None:
            raise RuntimeError("the secret path /home/me")

        return api

    deployment = ray.serve.deployment(ray.serve.ingress(build)(), ray_actor_options={"num_cpus": 0})
    ray.serve.run(deployment.bind(), name="faulty", route_prefix="/faulty")
    yield f"{address}/faulty"
    ray.serve.delete("faulty")


def test_no_stack_trace_leaves_the_server(faulty: str) -> None:
    response = httpx.get(f"{faulty}/fault", timeout=120)
    assert response.status_code == 500
    assert response.headers["content-type"] == MEDIA_TYPE
    assert response.json()["detail"] == internal_error().detail
    assert "secret" not in response.text and "Traceback" not in response.text


def test_the_log_has_no_path_of_a_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    api = FastAPI()
    add_problem_handlers(api)

    @api.get("/things/{name}")
    async def fault(name: str) -> None:
        raise RuntimeError("broken")

    TestClient(api, raise_server_exceptions=False).get("/things/my-secret-name")
    assert "GET /things/{name} failed" in caplog.text and "my-secret-name" not in caplog.text


def test_every_method_of_an_address_is_named() -> None:
    api = FastAPI()
    add_problem_handlers(api)
    for method in ("GET", "DELETE"):
        api.add_api_route("/things/{name}", lambda name: name, methods=[method])
    api.add_api_route("/things", lambda: "all", methods=["POST"])
    refused = TestClient(api).put("/things/one")
    assert refused.status_code == 405 and refused.headers["content-type"] == MEDIA_TYPE
    assert refused.headers["allow"] == "DELETE, GET"
