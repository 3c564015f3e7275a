"""Model folders: what is saved comes back bit for bit, and what is broken says so."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from huggingface_hub import HfApi

from devil import DeViL
from devil.errors import BackboneError, LanguageModelError, ModelFolderError
from devil.folder import CARD, CONFIG, STATISTICS, WEIGHTS, load_model, push_model, save_model


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a saved model in `model` and its frozen models beside it; not to be changed."""
    root = tmp_path_factory.mktemp("tree")
    tiny.tiny_model(root / "frozen").save_pretrained(root / "model")
    return root


@pytest.fixture
def copied(tree: Path, tmp_path: Path) -> Path:
    """A copy of the whole tree, elsewhere."""
    return Path(shutil.copytree(tree, tmp_path / "moved" / "tree"))


def edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(("backbone", "class_tokens"), [("test_resnet", False), ("test_vit", True)])
def test_saved_and_loaded_equals_the_original(
    backbone: str, class_tokens: bool, tmp_path: Path
) -> None:
    model = tiny.tiny_model(tmp_path / "frozen", backbone=backbone, class_tokens=class_tokens)
    assert model.version == "untrained"
    model.save_pretrained(tmp_path / "model")
    again = DeViL.from_pretrained(tmp_path / "model")
    assert not again.training
    assert again.version == model.version != "untrained"
    features = {slot: s.mean[None] + 0.1 for slot, s in model.statistics.items()}
    assert torch.equal(again.prefix(features), model.prefix(features))
    for slot, statistics in model.statistics.items():
        assert torch.equal(again.statistics[slot].mean, statistics.mean)
        assert torch.equal(again.statistics[slot].std, statistics.std)
    assert again.shapes == model.shapes
    assert again.summary == model.summary
    picture = tiny.picture(tiny.CAPTIONS[5])
    ours, theirs = (m.explain(picture, queries=["red circle", "line"]) for m in (model, again))
    assert ours == theirs
    assert ours.to_json() == theirs.to_json()


def test_threads_that_load_at_once_get_whole_models(tree: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load_model(tree / "model"), range(12)))
    for model in loaded:
        assert model.backbone is not None and model.backbone.digest() == model.backbone_digest
        assert model.language_model.digest() == loaded[0].language_model.digest()


def test_statistics_do_not_need_their_file(copied: Path) -> None:
    model = load_model(copied / "model", with_backbone=False)
    before = {slot: (s.mean.clone(), s.std.clone()) for slot, s in model.statistics.items()}
    tiny.overwrite(copied / "model" / STATISTICS)
    for slot, (mean, std) in before.items():
        assert torch.equal(model.statistics[slot].mean, mean)
        assert torch.equal(model.statistics[slot].std, std)


def test_holds_four_files_and_no_pickle(tree: Path) -> None:
    assert {p.name for p in (tree / "model").iterdir()} == {CONFIG, WEIGHTS, STATISTICS, CARD}
    assert os.access(tree / "model", os.R_OK | os.X_OK)
    assert {p.name for p in tree.iterdir()} == {"model", "frozen"}
    text = (tree / "model" / CONFIG).read_text() + (tree / "model" / CARD).read_text()
    assert str(tree) not in text
    for name in (WEIGHTS, STATISTICS):
        size = int.from_bytes((tree / "model" / name).read_bytes()[:8], "little")
        assert json.loads((tree / "model" / name).read_bytes()[8 : 8 + size])


def test_paths_survive_moving_the_tree(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied.parent)
    model = DeViL.from_pretrained("tree/model")
    assert Path(model.backbone_config.weights).is_relative_to("tree/frozen")
    assert Path(model.language_model.config.name).resolve().is_relative_to(copied)
    model.save_pretrained("tree/elsewhere/again")
    DeViL.from_pretrained("tree/elsewhere/again")


def test_works_without_the_backbone(copied: Path) -> None:
    shutil.rmtree(copied / "frozen" / "backbone")
    model = DeViL.from_pretrained(copied / "model", load_backbone=False)
    assert model.backbone is None
    with pytest.raises(BackboneError, match="load_backbone=True"):
        model.explain(tiny.picture(tiny.CAPTIONS[0]))
    with pytest.raises(BackboneError, match="does not exist"):
        DeViL.from_pretrained(copied / "model")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, STATISTICS])
def test_missing_file(name: str, copied: Path) -> None:
    (copied / "model" / name).unlink()
    with pytest.raises(ModelFolderError, match=rf"lacks \['{name}'\]"):
        DeViL.from_pretrained(copied / "model")


@pytest.mark.parametrize("name", [WEIGHTS, STATISTICS])
@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_truncated_tensors(name: str, kept: int, copied: Path) -> None:
    path = copied / "model" / name
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelFolderError, match=rf"{name} is corrupt"):
        DeViL.from_pretrained(copied / "model")


def test_changed_bits(copied: Path) -> None:
    path = copied / "model" / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFolderError, match="other weights than those of version"):
        DeViL.from_pretrained(copied / "model")


def test_tensors_of_another_model(copied: Path) -> None:
    config = json.loads((copied / "model" / CONFIG).read_text())
    edit_config(copied / "model", translator={**config["translator"], "depth": 3})
    with pytest.raises(
        ModelFolderError, match=r"does not fit its config.json: tensors .*layers\.2"
    ):
        DeViL.from_pretrained(copied / "model")
    edit_config(copied / "model", translator={**config["translator"], "feedforward": 40})
    with pytest.raises(ModelFolderError, match="does not fit"):
        DeViL.from_pretrained(copied / "model")
    shutil.copy(copied / "model" / WEIGHTS, copied / "model" / STATISTICS)
    edit_config(copied / "model", translator=config["translator"])
    with pytest.raises(ModelFolderError, match=r"lacks statistics .*mean\.layer2"):
        DeViL.from_pretrained(copied / "model")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format_version": 2}, "format version 2; this version of devil reads 1"),
        ({"format_version": None}, "format version None"),
        ({"colour": "red"}, r"unknown keys \['colour'\]"),
        ({"translator": {"width": 16, "colour": 1}}, r"no field \['colour'\]"),
        ({"translator": {"width": "wide"}}, "width is 'wide'"),
        ({"backbone": {"weights": "random"}}, r"needs the field \['name'\]"),
        ({"layers": {"layer2": [48]}}, "no model configuration"),
        ({"layers": None}, "no model configuration"),
        ({"language_model": []}, "no model configuration|needs the field"),
    ],
)
def test_configuration_that_cannot_be_read(
    values: dict[str, Any], message: str, copied: Path
) -> None:
    edit_config(copied / "model", **values)
    with pytest.raises(ModelFolderError, match=message):
        DeViL.from_pretrained(copied / "model")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\x01"])
def test_configuration_that_is_none(text: str, copied: Path) -> None:
    (copied / "model" / CONFIG).write_text(text)
    with pytest.raises(ModelFolderError, match=r"corrupt|format version None"):
        DeViL.from_pretrained(copied / "model")


def test_other_frozen_models_are_refused(copied: Path) -> None:
    other = tiny.tiny_backbone_weights(copied / "other", seed=1)
    with pytest.raises(BackboneError, match="translator was trained for"):
        DeViL.from_pretrained(copied / "model", backbone=other.weights)
    wrong = tiny.tiny_language_model(copied / "other_lm", seed=1)
    with pytest.raises(LanguageModelError, match="translator was trained for"):
        DeViL.from_pretrained(copied / "model", language_model=wrong)
    shutil.rmtree(copied / "frozen")
    with pytest.raises(LanguageModelError, match=r"frozen.*does not exist"):
        DeViL.from_pretrained(copied / "model")
    right = tiny.tiny_backbone_weights(copied / "right")
    lm = tiny.tiny_language_model(copied / "right_lm")
    DeViL.from_pretrained(copied / "model", backbone=right.weights, language_model=lm)


def test_no_folder(tmp_path: Path) -> None:
    for name in (tmp_path / "nothing", "./nothing", "runs/nothing", "a/b/c"):
        with pytest.raises(ModelFolderError, match="does not exist; give a folder or a hub id"):
            load_model(name)
    with pytest.raises(ModelFolderError, match="cannot be had from the hub"):
        load_model("no-such/model")  # no network under test


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_failure_while_saving_leaves_all_as_it_was(copied: Path) -> None:
    model = load_model(copied / "model")
    before = content(copied)
    model.summary = {"not": {"JSON"}}
    with torch.no_grad():
        model.translator.output.bias += 1
    with pytest.raises(TypeError, match="JSON"):
        save_model(model, copied / "model")
    with pytest.raises(TypeError, match="JSON"):
        save_model(model, copied / "new")
    assert content(copied) == before
    assert sorted(p.name for p in copied.iterdir()) == ["frozen", "model"]


def test_failure_of_the_last_rename_brings_the_old_folder_back(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(copied / "model")
    before, rename = content(copied), os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(target) == copied / "model" and ".old." not in str(source):
            raise OSError("disk on fire")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="disk on fire"):
        save_model(model, copied / "model")
    assert content(copied) == before
    assert sorted(p.name for p in copied.iterdir()) == ["frozen", "model"]


def test_saving_replaces_a_model_but_nothing_else(copied: Path) -> None:
    model = load_model(copied / "model")
    version = model.version
    with torch.no_grad():
        model.translator.output.bias += 1
    save_model(model, copied / "model")
    again = load_model(copied / "model")
    assert again.version == model.version != version
    assert torch.equal(again.translator.output.bias, model.translator.output.bias)
    for place in (copied, copied / "model" / CONFIG):
        with pytest.raises(ModelFolderError, match="is no model folder"):
            save_model(model, place)


def test_other_models_and_files_of_ones_own_are_not_replaced(copied: Path) -> None:
    model = load_model(copied / "model")
    language_model = Path(model.language_model.config.name)
    (copied / "model" / "notes.txt").write_text("mine")
    for place in (language_model, copied / "model"):
        before = content(place)
        with pytest.raises(ModelFolderError, match="is not replaced; choose another name"):
            save_model(model, place)
        assert content(place) == before


def test_files_are_readable_by_others(copied: Path) -> None:
    model = load_model(copied / "model")
    save_model(model, copied / "again")
    assert {path.stat().st_mode & 0o777 for path in (copied / "again").iterdir()} == {0o644}


def test_given_weights_replace_named_ones(copied: Path) -> None:
    config = json.loads((copied / "model" / CONFIG).read_text())
    edit_config(copied / "model", backbone={**config["backbone"], "weights": "random"})
    other = tiny.tiny_backbone_weights(copied / "other", seed=1)
    with pytest.raises(BackboneError, match="backbone=PATH"):
        DeViL.from_pretrained(copied / "model", backbone=other.weights)
    right = tiny.tiny_backbone_weights(copied / "right")
    model = DeViL.from_pretrained(copied / "model", backbone=right.weights)
    assert model.backbone_config.weights == right.weights


def test_an_empty_name_is_no_folder(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied / "model")
    with pytest.raises(ModelFolderError, match="does not exist"):
        DeViL.from_pretrained("")


class Hub(HfApi):
    """Records what would be uploaded."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.files: set[str] = set()

    def create_repo(self, repository: str, **options: Any) -> None:  # type: ignore[override]
        self.calls.append(("create_repo", {"repository": repository, **options}))

    def upload_folder(  # type: ignore[override]
        self, *, repo_id: str, folder_path: Path, commit_message: str
    ) -> str:
        self.calls.append(("upload_folder", {"repo_id": repo_id, "message": commit_message}))
        self.files = {p.name for p in Path(folder_path).iterdir()}
        return "https://hub/commit/1"


def test_push(copied: Path) -> None:
    model, hub = load_model(copied / "model"), Hub()
    with pytest.raises(ModelFolderError, match="local files"):
        push_model(model, "me/model", api=hub)
    assert not hub.calls
    model.backbone_config = type(model.backbone_config)(name="timm:resnet50")
    model.language_model.config = type(model.language_model.config)(name="facebook/opt-125m")
    address = push_model(model, "me/model", private=False, api=hub)
    assert address == "https://hub/commit/1"
    assert hub.calls == [
        ("create_repo", {"repository": "me/model", "private": False, "exist_ok": True}),
        ("upload_folder", {"repo_id": "me/model", "message": "Upload DeViL model"}),
    ]
    assert hub.files == {CONFIG, WEIGHTS, STATISTICS, CARD}
