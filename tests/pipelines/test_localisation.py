"""The localisation protocol through real Ray, on tiny photos with masks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import CAPTIONS, picture, tiny_model, tiny_store

from devil.errors import ConfigError, DataError, LayerError
from pipelines.pool import PoolConfig
from pipelines.protocols.localisation import (
    LocalisationOptions,
    _units,
    localisation,
    named_often,
)

BOX = [[10, 10, 50, 10, 50, 40, 10, 40]]


def write_data(folder: Path) -> None:
    (folder / "photos").mkdir()
    images, annotations = [], []
    for number in range(5):
        name = f"{number}.png"
        picture(CAPTIONS[number], seed=number).save(folder / "photos" / name)
        images.append({"id": number, "file_name": name, "width": 64, "height": 64})
        for category in (1, 18) if number % 2 else (18,):
            entry = {"image_id": number, "category_id": category, "segmentation": BOX}
            annotations.append(entry)
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(document))


def test_halves_share_no_photo() -> None:
    options = LocalisationOptions(model="", instances="many.json", photos="", output="", limit=9)
    keys = [f"{number:02}" for number in range(20)]
    chosen = {}
    for half in ("choosing", "reporting"):
        (chosen[half],) = _units(keys, replace(options, half=half, limit=None))
        assert _units(keys[::-1], replace(options, half=half, limit=None)) == [chosen[half]]
    assert sorted(chosen["choosing"] + chosen["reporting"]) == keys
    assert list(map(len, _units(keys, options))) == [9]
    with pytest.raises(DataError, match=r"many\.json has 1 photo .* in the reporting half"):
        _units(keys[:3], replace(options, half="reporting"))


def test_localisation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model(tmp_path / "parts").save_pretrained(tmp_path / "model")
    tiny_model(tmp_path / "random", untrained=True).save_pretrained(tmp_path / "control")
    write_data(tmp_path)
    options = LocalisationOptions(
        model=str(tmp_path / "model"),
        instances=str(tmp_path / "instances.json"),
        photos=str(tmp_path / "photos"),
        output=str(tmp_path / "results"),
        layers=("layer4", "layer3+layer4"),
        contrast=("none", "pmi"),
        prompts=("",),
        synonyms=(False,),
        neighbours=(0.0,),
        random=str(tmp_path / "control"),
        photos_per_unit=2,
        resamples=50,
        pool=PoolConfig(workers=2, cpus_per_worker=1),
    )
    found = localisation(options)
    written = json.loads((tmp_path / "results" / "localisation.json").read_text())
    assert written["images"] == 5 and written["model"]["version"] == found["model"]["version"]
    scores = written["scores"]["all_categories"]
    settings = ["layer4", "layer4, contrast pmi", "layer3+layer4", "layer3+layer4, contrast pmi"]
    blind = ["random map", "centre map"]
    shuffled = [f"{name} / shuffled" for name in settings]
    untrained = [f"{name} / random backbone" for name in settings]
    assert sorted(scores) == sorted([*settings, *shuffled, *untrained, "Grad-CAM layer4", *blind])
    assert scores["layer4"]["maps"] == 7 and scores["Grad-CAM layer4"]["maps"] == 5
    assert 0 < scores["layer4"]["chance"] < 1
    gap = scores["layer4"]["precision"]["mean"] - scores[shuffled[0]]["precision"]["mean"]
    above = scores["layer4"]["above"]
    assert above[shuffled[0]]["precision"]["mean"] == pytest.approx(gap)
    assert set(above) == {shuffled[0], untrained[0], "Grad-CAM layer4", "centre map"}
    assert written["random_control"]["captions_seen"] is None
    assert written["scores"]["imagenet_categories"]["layer4"]["maps"] == 5
    printed = capsys.readouterr().out
    assert "Maps for categories with an ImageNet class: 5 photos, 5 maps" in printed
    assert "centre map" in printed
    head, rows = written["tables"][0]["columns"], written["tables"][0]["rows"]
    assert head[1:4] == ["pointing", "shuffled", "random backbone"]
    assert head[7:9] == ["precision − Grad-CAM layer4's", "precision − centre map's"]
    assert rows[-1][7:9] == [None, None]
    assert [row[0] for row in rows] == [*settings, "Grad-CAM layer4", *blind]
    assert rows[0][6] == scores[untrained[0]]["precision"]["mean"]
    assert rows[-1][2:4] == [None, None]

    again = localisation(replace(options, random="", pool=replace(options.pool, workers=1)))
    for name in settings:
        del scores[name]["above"][f"{name} / random backbone"]
    assert again["scores"]["all_categories"] == {
        name: score for name, score in scores.items() if name not in untrained
    }
    (tmp_path / "photos" / "1.png").write_bytes(b"no picture")
    picture(CAPTIONS[3], seed=3).resize((32, 32)).save(tmp_path / "photos" / "3.png")
    left = localisation(replace(options, random="", layers=("layer4",), photos_per_unit=5))
    assert set(left["failed"]) == {"1.png", "3.png"} and left["images"] == 3
    assert "32 × 32 pixels" in left["failed"]["3.png"]
    assert left["scores"]["all_categories"]["layer4"]["photos"] == 3
    with pytest.raises(ConfigError, match=r"--backbone\.weights random"):
        localisation(replace(options, random=options.model))
    with pytest.raises(LayerError, match="layer9"):
        localisation(replace(options, layers=("layer9",)))
    with pytest.raises(ConfigError, match="photos_per_unit is 1"):
        replace(options, photos_per_unit=1)


def test_categories_that_training_captions_name(tmp_path: Path) -> None:
    store = tiny_store(tmp_path, shards=4, rows=8)  # every picture shows a circle, square or line
    said = ("circle", "line", "horse")
    assert named_often(said, str(tmp_path / "store"), least=1) == ("circle", "line")
    counts = [
        sum("circle" in " ".join(texts) for texts in captions)
        for captions in [store.read(p, ["captions"]).column(0).to_pylist() for p in store.parts()]
    ]
    assert named_often(said[:1], str(tmp_path / "store"), least=sum(counts)) == ("circle",)
    assert named_often(said[:1], str(tmp_path / "store"), least=sum(counts) + 1) == ()
