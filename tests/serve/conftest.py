"""The application on real Ray Serve, on a free port of this machine, with a tiny model."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import ray.serve
from tiny import encoded, picture, tiny_model

from devil import DeViL
from pipelines.pool import start_ray
from serve.app import app
from serve.settings import Settings

# Read by processes that Ray starts, whichever test starts it. A busy machine needs more time than
# Ray gives them: they would be killed while they load, again and again.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "120")
os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", "120")
os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve.front:layers")

PATH = "/v1/explain"
MAX_REQUEST_BYTES = 200_000
SETTINGS = {
    "device": "cpu",
    "threads": 1,
    "turn_locations": 64,
    "max_wait_seconds": 100.0,
    "max_request_bytes": MAX_REQUEST_BYTES,
    "max_pixels": 1_000_000,
    "max_pictures": 5,
    "keep_explanations": 20,
}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose backbone and language model lie beside it."""
    folder = tmp_path_factory.mktemp("served")
    tiny_model(folder).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def model(model_folder: Path) -> DeViL:
    """The served model, in this process."""
    return DeViL.from_pretrained(model_folder)


@pytest.fixture(scope="session")
def address(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the application answers; Ray is left running if others had started it."""
    ours = not ray.is_initialized()
    start_ray()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        state = str(tmp_path_factory.mktemp("state"))
        ray.serve.run(app(Settings(model=str(model_folder), state=state, **SETTINGS)))
        yield f"http://127.0.0.1:{port}"
    finally:
        ray.serve.shutdown()
        if ours:
            ray.shutdown()


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    """A client of the application."""
    with httpx.Client(base_url=address, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    """A picture's file, larger than the backbone's input and not square."""
    return encoded(picture("a red circle on the left side", side=96).resize((120, 96)))


def assert_problem(response: httpx.Response, status: int, field: str | None, *words: str) -> None:
    """A problem document that blames a field, says some words, and shows nothing of the code."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status and problem["title"]
    assert problem.get("field") == field, problem
    for word in words:
        assert word in problem["detail"], problem
    assert "Traceback" not in response.text and ".py" not in response.text


async def post_all(
    address: str, requests: list[tuple[bytes, dict[str, Any]]]
) -> list[httpx.Response]:
    """Answers to pictures with options, all asked at once."""
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        return await asyncio.gather(
            *(client.post(PATH, files={"image": i}, data=options) for i, options in requests)
        )
