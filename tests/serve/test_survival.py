"""Copies that are killed, replaced or taken away while clients ask."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray.serve
from processes import processes

from devil.client import Client, RetryConfig
from serve.app import app
from serve.settings import Settings

from .conftest import SETTINGS

pytestmark = pytest.mark.live

PATIENCE = 300.0
NAME = f"mortal-{os.getpid()}"
"""Of the application, and so of its processes; nobody else's have it."""
BRIEF = {"layers": ["layer4"], "dense": False, "max_new_tokens": 2, "keep": False}


@pytest.fixture
def mortal(address: str, model_folder: Path) -> Iterator[str]:
    """Where an application of our own answers."""
    ray.serve.run(app(settings_of(model_folder)), name=NAME, route_prefix=f"/{NAME}")
    yield f"{address}/{NAME}"
    ray.serve.delete(NAME)


def settings_of(model_folder: Path, **changed: object) -> Settings:
    state = str(model_folder.parent / "state")
    return Settings.model_validate(
        {"model": str(model_folder), "state": state, **SETTINGS, **changed}
    )


def explainers() -> set[int]:
    """Processes of the application's copies."""
    pattern = rf"ServeReplica:{NAME}:Explainer"
    return {found.number for found in processes() if re.search(pattern, found.command)}


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Asking:
    """Clients with retries that ask without a pause, and what they got."""

    def __init__(self, address: str, picture: bytes, clients: int = 3) -> None:
        self.address, self.picture = address, picture
        self.answers: list[str] = []
        self.failures: list[BaseException] = []
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> "Asking":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        retry = RetryConfig(tries=1000, total_seconds=PATIENCE, longest_wait_seconds=2.0)
        with Client(self.address, retry=retry) as client:
            while not self._stopped.is_set():
                try:
                    self.answers.append(client.explain(self.picture, **BRIEF).version)
                except BaseException as error:
                    self.failures.append(error)
                    return

    def more(self, count: int) -> None:
        """Wait for so many more answers."""
        enough = len(self.answers) + count
        wait_until(lambda: len(self.answers) >= enough or self.failures)


def test_clients_that_retry_do_not_see_a_killed_copy(mortal: str, jpeg: bytes) -> None:
    with Asking(mortal, jpeg) as asking:
        asking.more(3)
        killed = explainers()
        assert len(killed) == 1
        os.kill(killed.pop(), signal.SIGKILL)
        asking.more(6)
        wait_until(lambda: explainers() and not explainers() & killed)
    assert asking.failures == []


def test_a_redeployment_finishes_what_it_has_begun(
    mortal: str, jpeg: bytes, model_folder: Path
) -> None:
    before = explainers()
    with Asking(mortal, jpeg) as asking:
        asking.more(3)
        changed = settings_of(model_folder, max_request_bytes=SETTINGS["max_request_bytes"] - 1)
        ray.serve.run(app(changed), name=NAME, route_prefix=f"/{NAME}")
        asking.more(3)
    assert asking.failures == []
    assert not explainers() & before
