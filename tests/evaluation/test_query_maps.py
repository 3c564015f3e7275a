"""Maps under several settings at once equal those that `explain` makes one at a time."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from devil import DecodingConfig, DeViL
from devil.errors import ConfigError, LayerError, QueryError
from devil.evaluation.map_setting import MapSetting
from devil.evaluation.pointing import blend_neighbours
from devil.evaluation.query_maps import mix, query_maps
from devil.picture_features import Features, image_features

NAMES = ("red circle", "line", "blue square", "white")
ASKED = [["line", "white"], [], ["red circle"]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DeViL:
    return tiny.tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [tiny.picture(tiny.CAPTIONS[i], seed=i) for i in (0, 30, 60)]


@pytest.fixture(scope="module")
def features(model: DeViL, images: list[Image.Image]) -> Features:
    return image_features(model, images)


@pytest.fixture(scope="module")
def alone(model: DeViL, images: list[Image.Image]) -> Features:
    """Of the first picture."""
    return image_features(model, images[:1])


def explained(
    model: DeViL, image: Image.Image, name: str, layer: str, setting: MapSetting
) -> np.ndarray:
    queries = (name,) if setting.contrast == "none" else NAMES
    explanation = model.explain(
        image,
        layers=layer,
        queries=queries,
        dense=False,
        calibration="contrast" if setting.contrast == "names" else "none",
        prompt=setting.prompt,
        smoothing=setting.smoothing,
        decoding=DecodingConfig(max_new_tokens=1),
    )
    return explanation.layers[layer].saliency[name].astype(np.float64)


def test_maps_are_those_of_explain(
    model: DeViL, images: list[Image.Image], features: Features
) -> None:
    mixed = ("layer2", "layer4")
    settings = [
        MapSetting(layers=("layer3",)),
        MapSetting(layers=("layer3",), prompt="a"),
        MapSetting(layers=("layer3",), smoothing=3, contrast="names"),
        MapSetting(layers=("layer3",), smoothing=3),
        MapSetting(layers=("all",), neighbours=0.5),
        MapSetting(layers=mixed, contrast="names", prompt="a"),
    ]
    found = query_maps(model, features, ASKED, settings, names=[NAMES] * 3)
    assert list(found) == settings
    for setting, pictures in found.items():
        assert [list(picture) for picture in pictures] == ASKED
        for image, picture in zip(images, pictures, strict=True):
            for name, values in picture.items():
                maps = [explained(model, image, name, layer, setting) for layer in setting.layers]
                expected = mix(maps) if len(maps) > 1 else maps[0]
                expected = blend_neighbours(expected, setting.neighbours)
                np.testing.assert_allclose(values, expected, atol=2e-4)


def test_synonyms_add_their_probabilities(model: DeViL, alone: Features) -> None:
    plain, wide = (MapSetting(layers=("layer3",), prompt="a", synonyms=s) for s in (False, True))
    words = {"line": ("white", "red circle")}
    asked = [["line", "white", "red circle"]]
    found = query_maps(model, alone, asked, [plain, wide], synonyms=words)
    apart, together = found[plain][0], found[wide][0]
    expected = np.log(sum(np.exp(apart[name]) for name in asked[0]))
    np.testing.assert_allclose(together["line"], expected, atol=1e-5)
    np.testing.assert_allclose(together["white"], apart["white"], atol=1e-5)
    assert wide.name == 'layer3, "a", synonyms'


def test_contrast_after_calibration(
    model: DeViL, images: list[Image.Image], alone: Features
) -> None:
    setting = MapSetting(layers=("layer3",), contrast="pmi")
    values = query_maps(model, alone, [["line"]], [setting], names=[NAMES])[setting][0]["line"]
    maps = model.explain(
        images[0], layers="layer3", queries=NAMES, dense=False, calibration="pmi"
    ).layers["layer3"]
    others = [np.exp(maps.saliency[name].astype(np.float64)) for name in NAMES if name != "line"]
    expected = maps.saliency["line"] - np.log(np.mean(others, axis=0))
    np.testing.assert_allclose(values, expected, atol=2e-4)


def test_a_mixture_weighs_maps_alike_whatever_their_scale() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.normal(size=(2, 2)), rng.normal(size=(4, 4))
    found = mix([small, large])
    np.testing.assert_allclose(found, mix([7 + 100 * small, large]))
    fine = torch.nn.functional.interpolate(
        torch.tensor((small - small.mean()) / small.std())[None, None], size=4, mode="bilinear"
    )[0, 0].numpy()
    np.testing.assert_allclose(found, (fine + (large - large.mean()) / large.std()) / 2)
    np.testing.assert_allclose(mix([np.full((2, 2), 5.0), large]), (found * 2 - fine) / 2)
    # 7.1 has a mean that is not exactly 7.1.
    assert not mix([np.full((3, 3), 7.1), np.full((3, 3), 7.1)]).any()


def test_names_of_settings() -> None:
    assert MapSetting(layers=("blocks.8",)).name == "blocks.8"
    full = MapSetting(
        layers=("a", "b"), prompt="there is a", smoothing=3, contrast="pmi", neighbours=0.5
    )
    assert full.name == 'a+b, "there is a", smoothing 3, contrast pmi, neighbours 0.5'


def test_what_is_refused(model: DeViL, features: Features) -> None:
    with pytest.raises(ConfigError, match="no layers"):
        MapSetting(layers=())
    with pytest.raises(ConfigError, match="contrast is 'mean'"):
        MapSetting(layers=("all",), contrast="mean")  # type: ignore[arg-type]
    with pytest.raises(LayerError, match="layer9"):
        query_maps(model, features, ASKED, [MapSetting(layers=("layer9",))])
    contrast = MapSetting(layers=("layer3",), contrast="names")
    with pytest.raises(QueryError, match=r"without \['red circle'\]"):
        query_maps(model, features, ASKED, [contrast], names=[NAMES, NAMES, NAMES[1:]])
    with pytest.raises(QueryError, match="each of 3 pictures; got 1 lists"):
        query_maps(model, features, ASKED, [contrast], names=[NAMES])
    with pytest.raises(QueryError, match="at least two names"):
        query_maps(model, features, [["line"], [], []], [contrast], names=[["line"], NAMES, NAMES])
