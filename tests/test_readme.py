"""The README keeps its word: what can run offline is run, in the folder of a small demo."""

import contextlib
import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

import devil.command

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULT_KEYS = {
    "location_accuracy",
    "location_accuracy_shuffled",
    "pointing_game",
    "pointing_game_chance",
    "cider",
    "cider_shuffled",
    "seconds",
}


def offline_blocks() -> list[str]:
    return re.findall(r"<!-- runs offline -->\n```bash\n(.*?)```", README, re.S)


def python_block() -> str:
    found = re.search(r"```python\n(.*?)```", README, re.S)
    assert found
    return found[1]


def run(command: str, folder: Path) -> None:
    """Run one README command where `runs/demo` is, as a script of this checkout.

    In this process: a new one would load torch and start Ray for every command.
    """
    program, *arguments = shlex.split(command)
    if program == "devil":
        with contextlib.chdir(folder):
            devil.command.main(arguments)
        return
    assert program == "python", command
    script, *arguments = arguments
    with contextlib.chdir(folder), patch.object(sys, "argv", [script, *arguments]):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            assert not end.code, command


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of a few steps: everything is there, nothing is good."""
    folder = tmp_path_factory.mktemp("readme")
    small = "--scenes 340 --backbone-steps 3 --language-model-steps 5 --training-steps 5"
    run(f"python pipelines/quickstart.py {small} --test-scenes 4", folder)
    (folder / "photos").mkdir()
    from devil.data.scenes import render_scene

    render_scene(7).image.save(folder / "photo.jpg")
    render_scene(8).image.save(folder / "photos" / "eight.jpg")
    return folder


def test_the_demo_writes_results_and_a_report(demo: Path) -> None:
    results = json.loads((demo / "runs/demo/results.json").read_text())
    assert set(results) >= RESULT_KEYS
    assert set(results["cider"]) >= {"all", "layer2", "layer3", "layer4"}
    assert set(results["seconds"]) >= {"backbone", "language_model", "extract", "train", "audit"}
    page = (demo / "runs/demo/report/index.html").read_text()
    assert "Pointing game" in page and "control: another picture" in page


def test_the_python_example(demo: Path) -> None:
    (demo / "example.py").write_text(python_block())
    with contextlib.chdir(demo):
        runpy.run_path("example.py")
    assert "<html" in (demo / "photo.html").read_text()
    assert (demo / "photo.png").read_bytes().startswith(b"\x89PNG")


def test_the_shell_examples(demo: Path) -> None:
    blocks = offline_blocks()
    assert len(blocks) == 3
    for block in blocks:
        for command in block.replace("\\\n", " ").strip().splitlines():
            run(command, demo)
    assert (demo / "runs/audit/index.html").is_file()
    assert (demo / "runs/mine/report/index.html").is_file()


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    for script in set(re.findall(r"(?:pipelines|benchmarks)/\w+\.py", README)):
        assert (ROOT / script).is_file(), script
