"""Crop coherence from the command line's side: both measures, their files, and what they need."""

import json
from pathlib import Path

import pytest
from tiny import CAPTIONS, picture, tiny_image_text_model, tiny_model

from devil.config import DecodingConfig
from devil.errors import BackboneError, ConfigError, LayerError
from devil.evaluation.image_text import ImageTextConfig
from devil.model import DeViL
from pipelines.pool import PoolConfig
from pipelines.protocols.crops import CropsOptions, crops


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny_model(folder / "frozen").save_pretrained(folder / "model")
    tiny_model(folder / "untrained", untrained=True).save_pretrained(folder / "control")
    tiny_image_text_model(folder / "clip")
    (folder / "photos").mkdir()
    for i in range(10):
        picture(CAPTIONS[7 * i], 64, i).save(folder / "photos" / f"{i:02d}.png")
    document = {
        "images": [
            {"id": i, "file_name": f"{i:02d}.png", "width": 64, "height": 64} for i in range(10)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": i % 2,
                "iscrowd": 0,
                "segmentation": [[0, 0, 64, 0, 64, 40, 0, 40]],
            }
            for i in range(9)
        ],
        "categories": [{"id": 0, "name": "circle"}, {"id": 1, "name": "line"}],
    }
    (folder / "instances.json").write_text(json.dumps(document))
    return folder


def options(inputs: Path, output: Path, **changes: object) -> CropsOptions:
    values: dict[str, object] = {
        "model": str(inputs / "model"),
        "images": str(inputs / "photos"),
        "output": str(output),
        "sizes": (16, 32),
        "locations": 5,
        "decoding": DecodingConfig(max_new_tokens=6),
        "pool": PoolConfig(workers=1, cpus_per_worker=1),
    }
    return CropsOptions(**(values | changes))  # type: ignore[arg-type]


def clip(folder: Path) -> ImageTextConfig:
    return ImageTextConfig(name=str(folder))


def test_both_measures_on_the_annotated_photos(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = options(
        inputs,
        tmp_path,
        instances=str(inputs / "instances.json"),
        image_text=clip(inputs / "clip"),
        random=str(inputs / "control"),
    )
    results = crops(request)
    assert json.loads((tmp_path / "crops.json").read_text()) == results
    assert results["pictures"] == 9 and not results["failed"]
    layers = ["layer2", "layer3", "layer4", "all"]
    assert list(results["mean_captions"]) == layers
    assert results["image_text"]["sizes"] == [16, 32, 64]
    shapes = DeViL.from_pretrained(inputs / "model", load_backbone=False).shapes
    for layer in layers:
        for score in results["image_text"]["layers"][layer].values():
            assert sum(score["best"]) == pytest.approx(1)
        whole = results["objects"]["layers"][layer]["fields"]["whole"]
        # Every photo is covered by 40 of 64 rows, five times out of nine by circles.
        assert whole["locations"] == 9 * min(5, shapes[layer.replace("all", "layer4")].locations)
        assert whole["constant_category"] == "circle"
        assert whole["constant"] == pytest.approx(5 / 9)
    printed = capsys.readouterr().out
    for table in results["tables"][0], results["tables"][2]:
        assert "random backbone" in table["columns"]
    untrained = [
        w["fields"]["cell"]["random_backbone"] for w in results["objects"]["layers"].values()
    ]
    assert None not in untrained
    for text in ("Best crop", "Similarity to crops", "Objects named", "shuffled", "most frequent"):
        assert text in printed
    assert "was not run" not in printed


def test_pictures_without_masks(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (inputs / "photos" / "05.png").write_bytes(b"no picture")
    results = crops(options(inputs, tmp_path, image_text=clip(inputs / "clip"), limit=9))
    assert results["pictures"] == 9 and results["failed"] == ["05.png"]
    assert "no instance masks" in results["objects"]["not_run"]
    assert "objects was not run" in capsys.readouterr().out


def test_what_is_needed_is_said_first(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give --image-text\.name, --instances, .*both towers"):
        crops(options(inputs, tmp_path / "out"))
    with pytest.raises(BackboneError, match=r"holds no open_clip_config\.json"):
        crops(options(inputs, tmp_path / "out", image_text=clip(tmp_path)))
    judged = {"image_text": clip(inputs / "clip")}
    with pytest.raises(ConfigError, match=r"crop sizes \[64\] are not between 1 and 63"):
        crops(options(inputs, tmp_path / "out", sizes=(64,), **judged))
    with pytest.raises(LayerError, match="not trained for"):
        crops(options(inputs, tmp_path / "out", layers=("layer9",), **judged))
    assert not (tmp_path / "out").exists()
