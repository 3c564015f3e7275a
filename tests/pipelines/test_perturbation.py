"""Insertion and deletion from the command line's side, on a tiny classifier through real Ray."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import CAPTIONS, picture, tiny_model

from devil.errors import ConfigError, DataError, LayerError
from devil.evaluation.perturbation import PerturbationConfig
from devil.evaluation.perturbation_study import PerturbationStudy, StudyConfig, StudyPicture
from devil.model import DeViL
from pipelines.pool import PoolConfig
from pipelines.protocols.perturbation import (
    PerturbationOptions,
    chosen_files,
    perturbation,
)
from pipelines.protocols.perturbation_tables import short_names

STUDY = StudyConfig(
    settings=("layer4/head/contrast", "layer3/name/pmi", "layer3/name/none"),
    grad_cam_layers=("layer3", "layer4"),
    perturbation=PerturbationConfig(steps=3),
    rise_masks=6,
)
METHODS = [
    "DeViL layer4/head/contrast",
    "DeViL layer3/name/pmi",
    "DeViL layer3/name/none",
    "Grad-CAM layer3",
    "Grad-CAM layer4",
    "RISE",
    "DeViL, another picture",
    "DeViL, random backbone",
    "random",
    "centre",
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny_model(folder / "frozen").save_pretrained(folder / "model")
    tiny_model(folder / "untrained", untrained=True).save_pretrained(folder / "control")
    (folder / "photos").mkdir()
    for index in range(5):
        picture(CAPTIONS[index * 13], seed=index).save(folder / "photos" / f"{index}.png")
    (folder / "names.txt").write_text("\n".join(f"{i} thing{i % 50}" for i in range(1000)))
    return folder


def options(inputs: Path, output: Path, **changes: object) -> PerturbationOptions:
    values: dict[str, object] = {
        "model": str(inputs / "model"),
        "images": str(inputs / "photos"),
        "output": str(output),
        "study": STUDY,
        "random": str(inputs / "control"),
        "limit": 3,
        "skip": 1,
        "names": str(inputs / "names.txt"),
        "pictures_per_unit": 2,
        "pool": PoolConfig(workers=1, cpus_per_worker=1),
    }
    return PerturbationOptions(**(values | changes))  # type: ignore[arg-type]


def test_every_method_on_the_same_pictures(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = options(inputs, tmp_path)
    results = perturbation(request)
    printed = capsys.readouterr().out
    assert json.loads((tmp_path / "perturbation.json").read_text()) == json.loads(
        json.dumps(results)
    )
    assert Image.open(tmp_path / "perturbation.png").width > 1000
    files = chosen_files(request)
    assert [row["key"] for row in results["areas"]] == list(files) and len(files) == 3
    assert list(results["methods"]) == [
        "deletion/mean",
        "insertion/blur",
        "deletion/blur",
        "insertion/mean",
    ]
    for curve, rows in results["methods"].items():
        assert list(rows) == METHODS
        assert rows[METHODS[1]] == rows[METHODS[2]]  # pmi and none rank alike
        for method, scores in rows.items():
            areas = [row[curve][method] for row in results["areas"]]
            assert scores["area"]["mean"] == pytest.approx(sum(areas) / 3)
            assert len(scores["curve"]) == len(results["positions"]) == 4
        gap = results["differences"][curve]["RISE"]["mean"]
        means = [rows[name]["area"]["mean"] for name in (METHODS[0], "RISE")]
        assert gap == pytest.approx(means[0] - means[1])
    for method in METHODS:
        assert method in printed
    # The same, without Ray: one picture alone gives what it gave in its unit.
    model = DeViL.from_pretrained(inputs / "model")
    names = (inputs / "names.txt").read_text().splitlines()
    key, path = next(iter(files.items()))
    image = Image.open(path).convert("RGB")
    (alone,) = PerturbationStudy(model, STUDY, names)([StudyPicture(key, image, image)])
    found = results["areas"][0]
    assert found["class"] == alone.label and found["name"] == names[alone.label]
    assert found["words"] == alone.words == names[alone.label].split()[-1]
    for curve, by_method in alone.curves.items():
        for method, values in by_method.items():
            if method != METHODS[6]:  # another picture's features
                area = float(torch.trapezoid(torch.tensor(values), torch.tensor([0, 1, 2, 3]) / 3))
                assert found["/".join(curve)][method] == pytest.approx(area, abs=1e-3)


def test_broken_pictures_are_left_out_and_named(inputs: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(inputs / "photos", photos)
    request = options(inputs, tmp_path, images=str(photos), limit=0, skip=0, random="")
    names = list(chosen_files(request))
    (photos / names[0]).write_bytes(b"no picture")
    results = perturbation(request)
    # The picture itself, and the one whose control it was.
    assert names[0] in results["failed"] and len(results["failed"]) == 2
    assert [row["key"] for row in results["areas"]] == [
        name for name in names if name not in results["failed"]
    ]
    assert results["pictures"] == 3
    for name in names:
        (photos / name).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"no picture at .*photos can be read"):
        perturbation(request)


def test_what_cannot_be_measured_is_refused(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 5 pictures.*after skip=4"):
        perturbation(options(inputs, tmp_path, skip=4))
    with pytest.raises(ConfigError, match="limit is -1"):
        perturbation(options(inputs, tmp_path, limit=-1))
    with pytest.raises(LayerError, match="layer9"):
        study = replace(STUDY, settings=("layer9/name/none",))
        perturbation(options(inputs, tmp_path, study=study))
    with pytest.raises(LayerError):
        perturbation(options(inputs, tmp_path, study=replace(STUDY, grad_cam_layers=("stem9",))))
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    with pytest.raises(ConfigError, match="1000 classes apart, but 2 names"):
        perturbation(options(inputs, tmp_path, names=str(tmp_path / "few.txt")))
    for change, message in {
        "settings": "settings are",
        "curves": "curves are",
    }.items():
        with pytest.raises(ConfigError, match=message):
            StudyConfig(**{change: ()})  # type: ignore[arg-type]


def test_a_picture_leaves_out_what_all_settings_share() -> None:
    methods = ["DeViL a+b/name/none/in", "DeViL a+b/head/none/in", "RISE", "DeViL, another picture"]
    assert list(short_names(methods).values()) == [
        *("DeViL name", "DeViL head", "RISE", "DeViL, another picture"),
    ]
    assert short_names(["DeViL all/name/none"]) == {"DeViL all/name/none": "DeViL all/name/none"}
