"""DeViL's maps of a class: words, settings, what they share, and what ranks alike."""

from collections.abc import Sequence
from typing import get_args

import pytest
import torch
from tiny import CAPTIONS, picture, tiny_model

from devil.errors import ConfigError, LayerError, QueryError
from devil.evaluation.class_queries import (
    ClassQuery,
    Wording,
    class_wordings,
    own_captions,
    picture_words,
)
from devil.evaluation.map_setting import MapSetting
from devil.evaluation.query_maps import query_maps
from devil.model import DeViL
from devil.picture_features import Features, image_features
from devil.saliency import query_log_probabilities, tokenize_queries

QUERIES = [["red circle", "blue line", "square"], ["white line", "black circle", "green"]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DeViL:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def features(model: DeViL) -> Features:
    return image_features(model, [picture(CAPTIONS[i], seed=i) for i in (0, 30)])


def first_maps(
    model: DeViL,
    features: Features,
    *texts: str,
    queries: Sequence[Sequence[str]] = QUERIES,
) -> list[torch.Tensor]:
    """Maps (batch, rows, columns) for the first query of each picture, by setting."""
    settings = [ClassQuery.parse(text).setting for text in texts]
    asked = [words[:1] for words in queries]
    found = query_maps(model, features, asked, settings, names=queries)
    return [
        torch.stack(
            [
                torch.from_numpy(maps[words[0]])
                for maps, words in zip(found[setting], queries, strict=True)
            ]
        )
        for setting in settings
    ]


@pytest.mark.parametrize("calibration", ["none", "pmi", "mean", "contrast"])
@pytest.mark.parametrize("layer", ["layer3", "all"])
def test_maps_rank_like_those_of_explain(
    model: DeViL, features: Features, calibration: str, layer: str
) -> None:
    text = f"{layer}/name/{calibration}/smoothing=3/a photo of a"
    (maps,) = first_maps(model, features, text)
    for index, seed in enumerate((0, 30)):
        query = QUERIES[index][0]
        explanation = model.explain(
            picture(CAPTIONS[seed], seed=seed),
            layers=layer,
            queries=QUERIES[index],
            dense=False,
            calibration=calibration,  # type: ignore[arg-type]
            prompt="a photo of a",
            smoothing=3,
        )
        expected = explanation.layers[layer].saliency[query]
        if calibration == "mean":
            _, ids = model.language_model.query_ids(query, prompt="a photo of a")
            expected = expected * len(ids)
        if calibration == "pmi":
            mean = model.prefix(model.mean_features(model.layers if layer == "all" else (layer,)))
            queries = tokenize_queries(model.language_model, [query], prompt="a photo of a")
            expected = (
                expected + query_log_probabilities(model.language_model, mean, queries).item()
            )
        assert maps[index].numpy() == pytest.approx(expected, abs=1e-3)


def test_calibrations_but_contrast_rank_alike(model: DeViL, features: Features) -> None:
    texts = {c: f"layer2+all/name/{c}" for c in ("none", "pmi", "mean", "contrast")}
    none, pmi, mean, contrast = first_maps(model, features, *texts.values())
    assert torch.equal(pmi, none) and torch.equal(mean, none)
    assert not torch.allclose(contrast, none, atol=0.1)
    queries = {calibration: ClassQuery.parse(text) for calibration, text in texts.items()}
    assert queries["pmi"].ranking == queries["mean"].ranking == queries["none"]
    assert queries["contrast"].ranking == queries["contrast"]


def test_a_mixture_is_the_mean_of_standardised_maps_on_the_finest_grid(
    model: DeViL, features: Features
) -> None:
    layers = ("layer2", "layer4")
    mixed, *single = first_maps(
        model, features, "layer2+layer4/name/none", *(f"{layer}/name/none" for layer in layers)
    )
    rows, columns = model.shapes["layer2"][1:]
    assert mixed.shape == (2, rows, columns)
    total = torch.zeros(2, rows, columns)
    for maps in single:
        for index, values in enumerate(maps.float()):
            scaled = (values - values.mean()) / values.std(correction=0)
            total[index] += torch.nn.functional.interpolate(
                scaled[None, None], (rows, columns), mode="bilinear"
            )[0, 0]
    torch.testing.assert_close(mixed.float(), total / 2, atol=1e-4, rtol=0)


def test_words_for_the_likeliest_classes() -> None:
    names = ["bedlington terrier", "goldfish", "lakeland terrier", "great  white shark", "crane"]
    probabilities = torch.tensor([0.1, 0.2, 0.4, 0.25, 0.05])
    assert class_wordings(probabilities, names, "name", 2) == [
        "lakeland terrier",
        "great white shark",
        "goldfish",
    ]
    # A word that the first class has, too, is nothing to contrast it with.
    assert class_wordings(probabilities, names, "head", 9) == [
        "terrier",
        "shark",
        "goldfish",
        "crane",
    ]
    with pytest.raises(ConfigError, match="5 classes have 4 names"):
        class_wordings(probabilities, names[1:], "name")
    with pytest.raises(ConfigError, match="no wording of classes"):
        class_wordings(probabilities, names, "caption")


def test_settings_are_read_and_written_alike() -> None:
    for text in (
        "all/name/contrast",
        "layer2+layer4/head/none",
        "layer4/caption/pmi/smoothing=3",
        "all/name/mean/a photo of a",
        "all/name/mean/smoothing=5/in/out",
        "all/name/none/neighbours=0.5",
        "all/head/none/smoothing=3/neighbours=2/a photo of a",
    ):
        assert ClassQuery.parse(text).label == text
    setting = MapSetting(layers=("a", "b"), prompt="of a", smoothing=3)
    assert ClassQuery.parse("a+b/head/none/smoothing=3/of a") == ClassQuery(
        wording="head", calibration="none", setting=setting
    )
    assert ClassQuery.parse("all/name/contrast").setting.contrast == "names"
    either = "all/name/none/neighbours=1/smoothing=3"
    assert ClassQuery.parse(either).label == "all/name/none/smoothing=3/neighbours=1"
    with pytest.raises(ConfigError, match="needs a map setting with contrast 'names', not 'none'"):
        ClassQuery(wording="name", calibration="contrast", setting=setting)
    for text, message in {
        "all/name": "2 parts",
        "all/title/none": "wording is 'title'; allowed: name, head, caption",
        "all/name/log": "calibration is 'log'; allowed: none",
        "all/caption/contrast": "asks for none",
        "all/name/none/smoothing=x": "smoothing is 'x'",
        "all/name/none/neighbours=-1": "neighbours is '-1'",
        "all/name/none/Neighbours=1": "for one of smoothing, neighbours",
        "all/name/none/a photo of a/neighbours=1": "stand before the prompt",
    }.items():
        with pytest.raises(ConfigError, match=message):
            ClassQuery.parse(text)


def test_what_the_model_cannot_answer_is_refused(model: DeViL, features: Features) -> None:
    with pytest.raises(LayerError, match="layer9"):
        first_maps(model, features, "all+layer9/name/none")
    with pytest.raises(QueryError, match="at least two names"):
        first_maps(model, features, "all/name/contrast", queries=[["red"], ["blue"]])


def test_own_captions_are_those_of_the_whole_picture(model: DeViL, features: Features) -> None:
    expected = []
    for seed in (0, 30):
        explanation = model.explain(picture(CAPTIONS[seed], seed=seed), layers="all", dense=False)
        caption = explanation.layers["all"].caption
        assert caption is not None
        expected.append(caption.text)
    assert own_captions(model, features) == expected


def test_words_of_pictures(model: DeViL, features: Features) -> None:
    names = ["red circle", "white line", "blue line"]
    probabilities = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    found = {
        wording: picture_words(model, features, probabilities, names, wording)
        for wording in get_args(Wording)
    }
    assert found == {
        "name": [["blue line", "white line", "red circle"], names],
        "head": [["line", "circle"], ["circle", "line"]],
        "caption": [[text] for text in own_captions(model, features)],
    }
