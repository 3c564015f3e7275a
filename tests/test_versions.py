"""Versions: one switch, moved whole; what was good stays, and can be gone back to."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch

from devil import DeViL
from devil.errors import ConfigError, LockError, ModelFolderError
from devil.lock import Lock
from devil.release import read_release
from devil.versions import ModelVersions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("versions")
    tiny.tiny_model(root / "frozen").save_pretrained(root / "model")
    return root


@pytest.fixture(scope="module")
def models(folder: Path) -> list[DeViL]:
    """Four models that differ in a few weights, and have been saved elsewhere."""
    result = []
    for number in range(4):
        model = DeViL.from_pretrained(folder / "model", load_backbone=False)
        with torch.no_grad():
            model.translator.prefix_tokens += number
        model.save_pretrained(folder / f"run{number}" / "model")
        result.append(model)
    return result


@pytest.fixture
def versions(tmp_path: Path) -> ModelVersions:
    return ModelVersions(tmp_path / "models")


def release(versions: ModelVersions, model: DeViL, **why: float) -> str:
    current = versions.current()
    name = versions.add(model)
    versions.promote(name, instead_of=current.current if current else None, why=why)
    return name


def test_the_folder_loads_as_its_current_version(
    versions: ModelVersions, models: list[DeViL]
) -> None:
    assert versions.current() is None
    first = versions.add(models[0])
    assert first == f"0001-{models[0].version[:8]}"
    with pytest.raises(ModelFolderError, match="lacks"):
        DeViL.from_pretrained(versions.root)  # stored, not released
    versions.promote(first, instead_of=None, why={"cider": 0.5})
    assert DeViL.from_pretrained(versions.root).version == models[0].version
    second = release(versions, models[1])
    assert second.startswith("0002-")
    loaded = DeViL.from_pretrained(versions.root)
    assert loaded.version == models[1].version and loaded.backbone is not None
    found = json.loads((versions.root / "current.json").read_text())
    assert (found["current"], found["earlier"], found["withdrawn"]) == (second, [first], [])
    assert found["when"] and found["why"] == {}


def test_a_link_to_the_folder_and_a_moved_tree_load(
    folder: Path, tmp_path: Path, models: list[DeViL]
) -> None:
    tree = Path(shutil.copytree(folder, tmp_path / "tree"))
    inside = ModelVersions(tree / "deep" / "models")
    release(inside, DeViL.from_pretrained(tree / "model"))
    (tmp_path / "link").symlink_to(inside.root)
    assert DeViL.from_pretrained(tmp_path / "link").version == models[0].version
    moved = tree.rename(tmp_path / "moved")
    assert DeViL.from_pretrained(moved / "deep" / "models").version == models[0].version


def test_adding_and_promoting_again_changes_nothing(
    versions: ModelVersions, models: list[DeViL]
) -> None:
    name = release(versions, models[0], cider=0.5)
    before = versions.current()
    assert versions.add(models[0]) == name == versions.find(models[0].version)
    assert versions.promote(name, instead_of="0009-12345678", why={}) == before
    assert versions.names() == [name]
    assert versions.find(models[1].version) is None


def test_rollback_goes_back_step_by_step_and_remembers_what_was_withdrawn(
    versions: ModelVersions, models: list[DeViL]
) -> None:
    names = [release(versions, model) for model in models[:3]]
    back = versions.rollback()
    assert (back.current, back.earlier, back.withdrawn) == (names[1], (names[0],), (names[2],))
    assert back.why == {"rolled_back": names[2]}
    assert versions.current() == back
    assert DeViL.from_pretrained(versions.root).version == models[1].version
    assert versions.rollback().current == names[0]
    with pytest.raises(ModelFolderError, match=f"no version to go back to: {names[0]} is current"):
        versions.rollback()
    again = versions.promote(names[2], instead_of=names[0], why={})
    assert (again.earlier, again.withdrawn) == ((names[0],), (names[1],))


def test_nothing_to_go_back_to(versions: ModelVersions) -> None:
    with pytest.raises(ModelFolderError, match="no version to go back to: nothing is current"):
        versions.rollback()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "statistics.safetensors"])
def test_what_is_missing_or_corrupt_does_not_become_current(
    versions: ModelVersions, models: list[DeViL], file: str
) -> None:
    first, second = release(versions, models[0]), versions.add(models[1])
    before = versions.current()
    with pytest.raises(ModelFolderError, match=f"has no version 0003-0; it has: {first}, {second}"):
        versions.promote("0003-0", instead_of=first, why={})
    path = versions.folder(second) / file
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelFolderError, match="corrupt"):
        versions.promote(second, instead_of=first, why={})
    assert versions.current() == before


def test_a_corrupt_earlier_version_is_not_gone_back_to(
    versions: ModelVersions, models: list[DeViL]
) -> None:
    first, second = release(versions, models[0]), release(versions, models[1])
    (versions.folder(first) / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelFolderError, match="corrupt"):
        versions.rollback()
    found = versions.current()
    assert found is not None and found.current == second


def test_what_was_compared_with_another_version_is_not_promoted(
    versions: ModelVersions, models: list[DeViL]
) -> None:
    first, second = release(versions, models[0]), release(versions, models[1])
    third = versions.add(models[2])
    versions.rollback()
    with pytest.raises(ModelFolderError, match=f"compared with {second}, and {first} is the curr"):
        versions.promote(third, instead_of=second, why={})


def test_pruning_keeps_the_newest_good_ones(versions: ModelVersions, models: list[DeViL]) -> None:
    names = [release(versions, model) for model in models[:3]]
    versions.rollback()
    names.append(release(versions, models[3]))
    (versions.root / "versions" / ".0005-abc.rest").mkdir()
    with pytest.raises(ConfigError, match="keep is 1"):
        versions.prune(1)
    versions.prune(2)
    assert versions.names() == [names[1], names[3]]
    assert not list((versions.root / "versions").glob(".*"))
    found = versions.current()
    assert found is not None
    assert (found.current, found.earlier, found.withdrawn) == (names[3], (names[1],), (names[2],))
    assert versions.find(models[2].version) == names[2]  # still known as withdrawn
    assert versions.rollback().current == names[1]


def test_a_new_number_is_above_all_that_were_released(
    versions: ModelVersions, models: list[DeViL]
) -> None:
    release(versions, models[0])
    release(versions, models[1])
    versions.rollback()
    assert versions.add(models[2]).startswith("0003-")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"current": 1, "earlier": [], "withdrawn": [], "when": ""}',
        '{"current": "../..", "earlier": [], "withdrawn": [], "when": ""}',
    ],
)
def test_a_corrupt_switch(versions: ModelVersions, models: list[DeViL], text: str) -> None:
    release(versions, models[0])
    (versions.root / "current.json").write_text(text)
    for read in (read_release, DeViL.from_pretrained):
        with pytest.raises(ModelFolderError, match="does not say which version is current"):
            read(versions.root)


def test_the_switch_is_moved_by_one_at_a_time(versions: ModelVersions, models: list[DeViL]) -> None:
    release(versions, models[0])
    second = versions.add(models[1])
    with (
        Lock(versions.root / "switch.lock"),
        pytest.raises(LockError, match=r"switch\.lock is held"),
    ):
        versions.promote(second, instead_of=None, why={})


def test_a_current_version_that_was_removed_by_hand(
    versions: ModelVersions, models: list[DeViL]
) -> None:
    versions.check_current()
    first, second = release(versions, models[0]), release(versions, models[1])
    versions.check_current()
    shutil.rmtree(versions.folder(second))
    with pytest.raises(
        ModelFolderError, match=rf"no version {second}; .*--rollback.*current\.json"
    ):
        versions.check_current()
    versions.rollback()
    versions.check_current()
    assert versions.current().current == first  # type: ignore[union-attr]
