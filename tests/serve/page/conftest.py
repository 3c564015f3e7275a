"""A service of two tiny models, a browser, and visits of the page."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray.serve
from playwright.sync_api import Browser
from tiny import tiny_model

from devil import DeViL
from serve.app import app
from serve.settings import Settings

from ..conftest import SETTINGS
from .chromium import Visit, chromium

NAMES = ("alpha", "beta")
Opener = Callable[..., Visit]


@pytest.fixture(scope="package")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of two models that say different things."""
    found = {}
    for seed, name in enumerate(NAMES):
        folder = tmp_path_factory.mktemp(name)
        tiny_model(folder, seed=seed).save_pretrained(folder / "model")
        found[name] = folder / "model"
    return found


@pytest.fixture(scope="package")
def models(folders: dict[str, Path]) -> dict[str, DeViL]:
    """The models in this process."""
    return {name: DeViL.from_pretrained(folder) for name, folder in folders.items()}


@pytest.fixture(scope="package")
def service(
    address: str, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Where the page of a service with both models is."""
    given = ",".join(f"{name}={folder}" for name, folder in folders.items())
    settings = Settings(model=given, state=str(tmp_path_factory.mktemp("state")), **SETTINGS)
    ray.serve.run(app(settings), name="page", route_prefix="/explorer")
    yield f"{address}/explorer"
    ray.serve.delete("page")


@pytest.fixture(scope="module")
def browser(service: str) -> Iterator[Browser]:
    """One for each file of tests: while it is open, nothing else can use asyncio."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def opened(browser: Browser, service: str) -> Iterator[Opener]:
    """Opens the page in a view; at the end nothing may have gone elsewhere or wrong."""
    visits: list[Visit] = []

    def open_page(view: str = "", **options: object) -> Visit:
        visits.append(Visit(browser, service, **options))
        return visits[-1].open(view)

    yield open_page
    for visit in visits:
        visit.close()
