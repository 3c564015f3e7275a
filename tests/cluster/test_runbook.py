"""The runbook names what exists."""

import re
import shlex
from pathlib import Path

import tyro
import yaml

from pipelines.extract import ExtractOptions

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "cluster" / "README.md").read_text()
MANIFESTS = "".join(file.read_text() for file in sorted((ROOT / "cluster").glob("*.yaml")))


def test_every_file_is_explained() -> None:
    explained = set(re.findall(r"^\| `(Dockerfile|[\w-]+\.yaml)` \|", RUNBOOK, re.M))
    assert explained == {file.name for file in (ROOT / "cluster").iterdir()} - {"README.md"}


def test_files_that_commands_name_exist() -> None:
    named = set(re.findall(r"(?:cluster|serve|tests)/[\w./-]+\w", RUNBOOK))
    assert named and all((ROOT / name).exists() for name in named), named


def test_extractions_are_understood() -> None:
    command = re.search(r"-- python pipelines/extract.py ((?:.*\\\n)*.*)", RUNBOOK)
    assert command
    options = tyro.cli(ExtractOptions, args=shlex.split(command[1].replace("\\\n", " ")))
    job = yaml.safe_load((ROOT / "cluster" / "rayjob-extract.yaml").read_text())
    other = tyro.cli(ExtractOptions, args=shlex.split(job["spec"]["entrypoint"])[2:])
    # The gate compares models on features of the same backbone and the same layers.
    assert options.backbone == other.backbone and options.store in MANIFESTS


def test_objects_that_commands_name_are_in_the_manifests() -> None:
    names = re.findall(
        r"(?:secret generic|secret|cronjob/?|pvc|ray.io/cluster=) ?(devil[\w-]*)", RUNBOOK
    )
    assert set(names) >= {"devil", "devil-ray-auth", "devil-storage", "devil-data", "devil-retrain"}
    for name in names:
        assert re.search(rf"\b(?:name|claimName|secretName): {name}\b", MANIFESTS), name
    for service in re.findall(r"service/([\w-]+?)-(?:head|serve)-svc", RUNBOOK):
        assert f"  name: {service}\n" in MANIFESTS
