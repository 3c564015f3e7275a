"""The image and the uploads: what goes into them exists, and nothing large does."""

import re
import zipfile
from pathlib import Path

from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text()
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()


def test_what_is_copied_exists_and_is_let_in() -> None:
    sources = [
        source
        for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.M)
        for source in line.split()[:-1]
    ]
    assert {"constraints.txt", "pyproject.toml", "devil", "pipelines", "serve"} == set(sources)
    assert all((ROOT / source).exists() for source in sources)
    assert {f"!{source}" for source in sources} == {n for n in IGNORED if n.startswith("!")}
    assert "*" in IGNORED


def test_it_runs_as_a_user_on_a_python_that_the_package_allows() -> None:
    python = re.search(r"^ARG PYTHON=(\d+)\.(\d+)$", DOCKERFILE, re.M)
    least = re.search(r'requires-python = ">=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert python and least
    assert tuple(map(int, python.groups())) >= tuple(map(int, least.groups()))
    *_, user = re.findall(r"^USER (.+)$", DOCKERFILE, re.M)
    assert user == "1000" and f"--uid {user}" in DOCKERFILE


def test_both_variants_are_built_from_images_without_a_host() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert bases == ["python:${PYTHON}-slim", "base", "base", "${DEVICE}"]
    assert set(re.findall(r"^FROM base AS (\w+)$", DOCKERFILE, re.M)) == {"cpu", "cuda"}
    assert re.search(r"^ARG DEVICE=cuda$", DOCKERFILE, re.M)


def test_a_job_uploads_the_programs_and_little_else(tmp_path: Path) -> None:
    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    assert package.stat().st_size < 2_000_000
    folders = {name.split("/")[0] for name in zipfile.ZipFile(package).namelist() if "/" in name}
    assert {"devil", "pipelines", "serve"} <= folders
    assert not folders & {"benchmarks", "docs", "runs", "tests", ".git", ".venv"}
