"""A new version takes the old one's place while clients go on asking."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import ray.serve
import torch

from devil import DeViL
from devil.errors import ModelFolderError
from devil.versions import ModelVersions
from serve.app import app
from serve.reload import ServedModel
from serve.settings import Settings

from .conftest import PATH, SETTINGS

PATIENCE = 120.0


@pytest.fixture
def versions(model_folder: Path, tmp_path: Path) -> ModelVersions:
    """Two versions, of which the first is current."""
    versions = ModelVersions(tmp_path / "models")
    model = DeViL.from_pretrained(model_folder, load_backbone=False)
    versions.promote(versions.add(model), instead_of=None, why={})
    with torch.no_grad():
        model.translator.prefix_tokens += 1
    model.save_pretrained(tmp_path / "next")
    versions.add(model)
    return versions


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def served(versions: ModelVersions) -> ServedModel:
    return ServedModel(str(versions.root), "cpu", reload_seconds=0.05)


def test_promotion_and_rollback_are_followed(versions: ModelVersions) -> None:
    first, second = versions.names()
    found = served(versions)
    old = found.model
    assert first.endswith(old.version[:8])
    versions.promote(second, instead_of=first, why={})
    wait_until(lambda: found.model is not old)
    assert second.endswith(found.model.version[:8])
    versions.rollback()
    wait_until(lambda: found.model.version == old.version)
    found.stop()


def test_a_version_that_cannot_be_loaded_leaves_the_old_one(versions: ModelVersions) -> None:
    first, second = versions.names()
    found = served(versions)
    old = found.model
    found.stop()
    versions.promote(second, instead_of=first, why={})
    shutil.rmtree(versions.folder(second))
    with pytest.raises(ModelFolderError):
        found._look()
    found._look()  # the same one is not tried again soon
    assert found.model is old
    third = DeViL.from_pretrained(versions.root.parent / "next", load_backbone=False)
    with torch.no_grad():
        third.translator.prefix_tokens += 1
    third.save_pretrained(versions.root.parent / "third")
    versions.promote(versions.add(third), instead_of=second, why={})
    found._look()
    assert found.model.version == third.version


def test_a_version_that_failed_once_is_tried_again(
    versions: ModelVersions, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = versions.names()
    found = served(versions)
    old = found.model
    found.stop()
    versions.promote(second, instead_of=first, why={})
    away = versions.root.parent / "away"
    versions.folder(second).rename(away)
    now = time.monotonic()
    monkeypatch.setattr("serve.reload.time.monotonic", lambda: now)
    for wait in (60, 120, 240):
        with pytest.raises(ModelFolderError):
            found._look()
        now += wait - 1
        found._look()
        now += 1
    away.rename(versions.folder(second))
    found._look()
    assert found.model is not old and second.endswith(found.model.version[:8])


def watching() -> set[int | None]:
    return {thread.ident for thread in threading.enumerate() if thread.name == "reload"}


def test_a_model_folder_is_not_watched(model_folder: Path) -> None:
    before = watching()
    found = ServedModel(str(model_folder), "cpu", reload_seconds=0.05)
    assert watching() <= before
    assert found.model.version == DeViL.from_pretrained(model_folder).version


def test_a_client_that_never_pauses_sees_no_error_and_at_the_end_the_new_version(
    address: str, versions: ModelVersions, jpeg: bytes
) -> None:
    first, second = versions.names()
    settings = Settings(model=str(versions.root), **SETTINGS, reload_seconds=0.1)
    ray.serve.run(app(settings), name="reloading", route_prefix="/reloading")
    answers: list[tuple[int, str]] = []
    stopped = threading.Event()

    def ask(client: httpx.Client) -> None:
        while not stopped.is_set():
            response = client.post(
                f"/reloading{PATH}",
                files={"image": jpeg},
                data={"layers": "layer4", "dense": "false", "max_new_tokens": 2},
            )
            answers.append((response.status_code, response.json().get("version", "")))

    def version(client: httpx.Client) -> str:
        return client.get("/reloading/v1/models").json()["models"][0]["version"]

    with httpx.Client(base_url=address, timeout=120) as client:
        assert first.endswith(version(client)[:8])
        clients = [threading.Thread(target=ask, args=[client]) for _ in range(3)]
        for thread in clients:
            thread.start()
        try:
            wait_until(lambda: len(answers) > 10)
            versions.promote(second, instead_of=first, why={})
            wait_until(lambda: second.endswith(version(client)[:8]))
            after = len(answers)
            wait_until(lambda: len(answers) > after + 10)
        finally:
            stopped.set()
            for thread in clients:
                thread.join()
            ray.serve.delete("reloading")
    assert {status for status, _ in answers} == {200}
    assert first.endswith(answers[0][1][:8]) and second.endswith(answers[-1][1][:8])
