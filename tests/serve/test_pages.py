"""The files of the explorer page, as they are sent; `test_page` opens them in a browser."""

import asyncio
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import httpx
import numpy as np
from fastapi import FastAPI
from PIL import Image

from devil.data.scenes import render_scene
from devil.report.heatmap import colour_table
from serve.pages import EXPORTS, FOLDER, add_page, read_page
from serve.problems import add_problem_handlers

SCENES = {"sea": 46, "night": 92, "clouds": 56}
"""Samples, and the seeds that they were drawn from."""


def ask(path: str, method: str = "GET", **headers: str) -> httpx.Response:
    """The answer of an application that has nothing but the page."""
    api = FastAPI()
    add_page(api)
    add_problem_handlers(api)

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(send())


class Tags(HTMLParser):
    """The tags of a page, with their attributes, and what stands inside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_holds_nothing_inline_and_all_its_files_are_there() -> None:
    response = ask("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    tags = Tags(response.text).tags
    assert not [tag for tag, _ in tags if tag == "style"]
    used = set()
    for tag, attributes in tags:
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
        assert tag != "script" or attributes.get("src")
        used |= {a for name in ("src", "href") if (a := attributes.get(name))}
    assert len(used) >= 7
    for path in used:
        assert path.startswith("page/") and ask(f"/{path}").status_code == 200, path


def test_every_import_of_a_script_names_a_file_and_something_that_it_exports() -> None:
    files = read_page()
    exported = {"drawing.js": set(EXPORTS)}
    scripts = {n: f.content.decode() for n, f in files.items() if n.endswith(".js")}
    for name, text in scripts.items():
        found = re.findall(r"^export (?:class|const|function|async function) (\w+)", text, re.M)
        exported.setdefault(name, set(found))
    imports = [
        (name, source, what.strip())
        for name, text in scripts.items()
        for names, source in re.findall(r'import \{([^}]+)\} from "\./([^"]+)"', text)
        for what in names.split(",")
    ]
    assert len(imports) > 20
    for name, source, what in imports:
        assert what in exported[source], f"{name} imports {what} of {source}"
    for what in EXPORTS:
        declared = rf"^(?:function|const) {what}\b"
        assert re.search(declared, scripts["drawing.js"], re.M), what
        assert any(what == used for _, _, used in imports), f"nobody needs {what}"


def test_no_file_names_another_host() -> None:
    for name, file in read_page().items():
        if not name.endswith(".png"):
            addresses = re.findall(r"(?:https?:)?//[a-z][\w.-]+\.\w+", file.content.decode())
            assert set(addresses) <= {"http://www.w3.org"}, name


def test_the_policy_admits_nothing_from_elsewhere() -> None:
    for path in ("/", "/page/explorer.js", "/page/samples/sea.png"):
        headers = ask(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; img-src 'self' blob: data:;")
        assert "unsafe" not in policy and "*" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_a_file_that_the_browser_has_is_not_sent_again() -> None:
    first = ask("/page/explorer.css")
    assert first.headers["cache-control"] == "no-cache"
    again = ask("/page/explorer.css", **{"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"] != ask("/page/view.js").headers["etag"]
    changed = ask("/page/explorer.css", **{"If-None-Match": '"other"'})
    assert changed.content == first.content == (FOLDER / "explorer.css").read_bytes()


def test_other_files_are_not_there() -> None:
    for path in ("/page/", "/page/nothing.js", "/page/../pages.py", "/page/%2e%2e/pages.py"):
        response = ask(path)
        assert response.status_code == 404, path
        assert response.headers["content-type"] == "application/problem+json"
    assert ask("/", "POST").status_code == 405


def test_the_shared_script_has_the_colours_of_the_figures() -> None:
    found = re.search(r'colourTable\("([0-9a-f]+)"\)', ask("/page/drawing.js").text)
    assert found and bytes.fromhex(found[1]) == colour_table().tobytes()


def test_samples_are_scenes_and_small() -> None:
    files = sorted((FOLDER / "samples").iterdir())
    assert [file.stem for file in files] == sorted(SCENES)
    assert sum(file.stat().st_size for file in files) < 60_000
    for file in files:
        drawn = render_scene(SCENES[file.stem]).image
        np.testing.assert_array_equal(np.asarray(Image.open(file)), np.asarray(drawn))
    page = (FOLDER / "index.html").read_text()
    assert re.findall(r'data-sample="(\w+)"', page) == list(SCENES)


def test_the_files_travel_with_the_package() -> None:
    root = Path(__file__).parents[2]
    setuptools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = ("benchmarks", "devil", "pipelines", "serve")
    assert setuptools["packages"]["find"]["include"] == [f"{name}*" for name in packages]
    carried = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, patterns in setuptools["package-data"].items()
        for pattern in patterns
    ]
    needed = [
        path.relative_to(root)
        for package in packages
        for path in (root / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "results" not in path.parts
    ]
    assert len(needed) > 10
    for path in needed:
        assert any(path.match(pattern) for pattern in carried), path
