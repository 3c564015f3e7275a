"""DeViL's maps, Grad-CAM, blind maps and controls on photos with masks."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from devil import DeViL
from devil.data.coco import CocoPhoto
from devil.errors import BackboneError, DataError
from devil.evaluation.class_maps import centre_map, grad_cam, random_map
from devil.evaluation.coco_classes import coco_imagenet_classes
from devil.evaluation.localisation import MapResult, map_score, seen_part
from devil.evaluation.localiser import (
    CENTRE,
    GRAD_CAM,
    RANDOM,
    SHUFFLED,
    UNTRAINED,
    Localiser,
    with_class,
)
from devil.evaluation.map_setting import MapSetting
from devil.evaluation.query_maps import query_maps
from devil.evaluation.stored import derangement
from devil.picture_features import image_features

SETTING = MapSetting(layers=("layer3",))
OBJECTS = (
    {"dog": [[10, 10, 40, 10, 40, 40, 10, 40]], "person": [[30, 5, 50, 5, 50, 60, 30, 60]]},
    {"dog": [[40, 40, 60, 40, 60, 60, 40, 60]]},
    # The second object lies where the centre crop does not reach.
    {"person": [[30, 20, 60, 20, 60, 50, 30, 50]], "zebra": [[0, 0, 2, 0, 2, 2, 0, 2]]},
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DeViL:
    return tiny.tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[CocoPhoto]:
    folder = tmp_path_factory.mktemp("photos")
    found = []
    for number, objects in enumerate(OBJECTS):
        path = folder / f"{number}.png"
        tiny.picture(tiny.CAPTIONS[number], side=80, seed=number).save(path)
        outlines = {name: (polygons,) for name, polygons in objects.items()}
        found.append(CocoPhoto(key=path.name, path=str(path), size=(80, 80), outlines=outlines))
    return found


def test_every_method_scores_its_own_maps(model: DeViL, photos: list[CocoPhoto]) -> None:
    localiser = Localiser(model, [SETTING, SETTING], [], seed=3)
    results = localiser(photos)
    by = {(r.method, r.photo, r.category): r.score for r in results}
    assert len(by) == len(results)
    assert {r.method for r in results} == set(localiser.methods)
    assert localiser.methods == (
        "layer3",
        "layer3" + SHUFFLED,
        GRAD_CAM + "layer4",
        RANDOM,
        CENTRE,
    )
    assert model.backbone is not None
    transform = model.backbone.transform
    region = transform.region((80, 80))
    grid = tuple(model.shapes["layer4"][1:])
    images = [photo.image() for photo in photos]
    other = derangement(3, 3).tolist()
    for index, photo in enumerate(photos):
        masks = photo.masks()
        for name, mask in masks.items():
            if not seen_part(region, mask).any():
                assert name == "zebra" and not [k for k in by if k[2] == name]
                continue
            for method, source in (("layer3", index), ("layer3" + SHUFFLED, other[index])):
                features = image_features(model, [images[source]])
                values = query_maps(model, features, [[name]], [SETTING])[SETTING][0][name]
                score = by[method, photo.key, name]
                assert score.precision == pytest.approx(
                    map_score(values, region, mask).precision, abs=1e-3
                )
            noise = random_map(grid, f"{photo.key}|{name}", 3)
            assert by[RANDOM, photo.key, name] == map_score(noise, region, mask)
            assert by[CENTRE, photo.key, name] == map_score(centre_map(grid), region, mask)
            if name == "person":
                assert (GRAD_CAM + "layer4", photo.key, name) not in by
                continue
            batch = transform(images[index])[None]
            values = grad_cam(model.backbone, batch, [coco_imagenet_classes()[name]], "layer4")[0]
            score = by[GRAD_CAM + "layer4", photo.key, name]
            assert score.precision == pytest.approx(map_score(values, region, mask).precision)
    assert {r.category for r in with_class(results)} == {"dog"}


def test_maps_of_a_random_backbone_stand_beside(
    model: DeViL, photos: list[CocoPhoto], tmp_path: Path
) -> None:
    untrained = tiny.tiny_model(tmp_path, untrained=True)
    both = Localiser(model, [SETTING], [], untrained=untrained)(photos)
    alone = Localiser(untrained, [SETTING], [], grad_cam_layers=[])(photos)

    def precisions(results: list[MapResult], method: str) -> dict[tuple[str, str], float]:
        return {(r.photo, r.category): r.score.precision for r in results if r.method == method}

    beside = precisions(both, "layer3" + UNTRAINED)
    assert beside == pytest.approx(precisions(alone, "layer3"), abs=1e-3)
    assert precisions(both, "layer3") != pytest.approx(beside, abs=1e-3)


def test_what_is_refused(model: DeViL, photos: list[CocoPhoto], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give two or more"):
        Localiser(model, [SETTING], [])(photos[:1])
    assert model.backbone is not None
    head = model.backbone.module.get_classifier()
    model.backbone.module.reset_classifier(10)  # type: ignore[operator]
    try:
        assert Localiser(model, [SETTING], []).grad_cam_layers == ()
        with pytest.raises(BackboneError, match="tells 10 classes apart"):
            Localiser(model, [SETTING], [], grad_cam_layers=["layer4"])
    finally:
        model.backbone.module.reset_classifier(1000)  # type: ignore[operator]
        model.backbone.module.get_classifier().load_state_dict(head.state_dict())
        model.backbone.requires_grad_(False)
    assert Localiser(model, [SETTING], [], grad_cam_layers=[]).grad_cam_layers == ()


def test_the_head_is_needed_for_grad_cam_alone(photos: list[CocoPhoto], model: DeViL) -> None:
    results = Localiser(model, [SETTING], [], grad_cam_layers=[])(photos[:2])
    assert not any(r.method.startswith(GRAD_CAM) for r in results)
    assert np.isfinite([r.score.precision for r in results]).all()
    assert not torch.is_inference_mode_enabled()
