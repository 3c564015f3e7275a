"""DeViL as a whole: explanations agree with the reference, one location at a time."""

from pathlib import Path

import pytest
import reference
import tiny
import torch

from devil import DecodingConfig, DeViL
from devil.describing import explain_images
from devil.errors import ConfigError, ImageError, LayerError, QueryError
from devil.picture_features import image_features
from devil.saliency import tokenize_queries
from devil.types import ALL_LAYERS

QUERIES = ["circle", "red square"]
DECODING = DecodingConfig(max_new_tokens=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DeViL:
    return tiny.tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def with_class_tokens(tmp_path_factory: pytest.TempPathFactory) -> DeViL:
    folder = tmp_path_factory.mktemp("model")
    return tiny.tiny_model(folder, backbone="test_vit", class_tokens=True, family="qwen2")


def slow_prefix(model: DeViL, features: dict[str, torch.Tensor]) -> torch.Tensor:
    config = model.translator.config
    return reference.translator_prefix(
        {k: v.double() for k, v in model.translator.state_dict().items()},
        model.translator.slots,
        {slot: vector.double() for slot, vector in features.items()},
        set(features),
        heads=config.heads,
        depth=config.depth,
    ).float()


@pytest.mark.parametrize("smoothing", [1, 3])
def test_explanation_equals_the_reference(model: DeViL, smoothing: int) -> None:
    picture = tiny.picture(tiny.CAPTIONS[7])
    found = model.explain(picture, queries=QUERIES, smoothing=smoothing, decoding=DECODING)
    assert list(found.layers) == [*model.layers, ALL_LAYERS]
    maps = {n: f.map[0] for n, f in image_features(model, [picture]).items()}
    grid = tuple(maps["layer4"].shape[1:])
    queries = tokenize_queries(model.language_model, QUERIES)
    for name, layer in found.layers.items():
        layers = model.layers if name == ALL_LAYERS else (name,)
        smoothed = {n: reference.smooth(maps[n], smoothing) for n in layers}
        if name == ALL_LAYERS:
            smoothed = {n: reference.resize(m, grid) for n, m in smoothed.items()}
            assert layer.grid == grid
        assert layer.grid == tuple(smoothed[layers[-1]].shape[1:])
        pooled = slow_prefix(model, {n: reference.mean_pool(maps[n]) for n in layers})
        assert layer.caption == approximately(model, pooled)
        mean = slow_prefix(model, {n: model.statistics[n].mean for n in layers})
        for row, column in {(0, 0), (0, layer.grid[1] - 1), (layer.grid[0] - 1, 0)}:
            place = {n: m[:, row, column] for n, m in smoothed.items()}
            prefix = slow_prefix(model, place)
            assert layer.captions is not None
            assert layer.captions[row][column] == approximately(model, prefix)
            for query in queries:
                score, own = (
                    reference.query_score(model.language_model, p, (), query.ids)
                    for p in (prefix, mean)
                )
                value = float(layer.saliency[query.text][row, column])
                assert value == pytest.approx(score - own, abs=1e-3)


def approximately(model: DeViL, prefix: torch.Tensor) -> object:
    """The reference's caption; its log-probability within float32."""
    ids, score = reference.greedy(model.language_model, prefix, DECODING.max_new_tokens)
    expected = (model.language_model.text(ids), pytest.approx(score, abs=1e-3), len(ids))

    class Same:
        def __eq__(self, caption: object) -> bool:
            found = (caption.text, caption.log_probability, caption.tokens)  # type: ignore[attr-defined]
            return found == expected

        def __repr__(self) -> str:
            return repr(expected)

    return Same()


def test_class_tokens_join_pooled_captions_alone(with_class_tokens: DeViL) -> None:
    model, picture = with_class_tokens, tiny.picture(tiny.CAPTIONS[3])
    found = model.explain(picture, queries=["circle"], decoding=DECODING)
    features = image_features(model, [picture])
    layer = model.layers[0]
    token, feature_map = features[layer].class_token, features[layer].map[0]
    assert token is not None
    both = {layer: reference.mean_pool(feature_map), f"{layer}.class": token[0]}
    assert found.layers[layer].caption == approximately(model, slow_prefix(model, both))
    place = slow_prefix(model, {layer: feature_map[:, 1, 2]})
    captions = found.layers[layer].captions
    assert captions is not None and captions[1][2] == approximately(model, place)


def test_several_pictures_equal_one_by_one(model: DeViL) -> None:
    pictures = [tiny.picture(caption) for caption in tiny.CAPTIONS[:3]]
    together = explain_images(model, pictures, queries=QUERIES, decoding=DECODING)
    for picture, explanation in zip(pictures, together, strict=True):
        alone = model.explain(picture, queries=QUERIES, decoding=DECODING)
        for name, layer in alone.layers.items():
            other = explanation.layers[name]
            assert other.captions is not None and layer.captions is not None
            texts = [[c.text for c in row] for row in other.captions]
            assert texts == [[c.text for c in row] for row in layer.captions]
            for query in QUERIES:
                difference = abs(layer.saliency[query] - other.saliency[query]).max()
                assert difference < 1e-3
    assert explain_images(model, []) == []


def test_what_is_not_asked_is_not_there(model: DeViL, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    tiny.picture(tiny.CAPTIONS[0], side=90).save(path)
    found = model.explain(path, layers=["layer3"], dense=False, decoding=DECODING)
    assert list(found.layers) == ["layer3"]
    assert found.layers["layer3"].captions is None
    assert found.layers["layer3"].caption is not None
    assert found.layers["layer3"].saliency == {}
    assert (found.source, found.image_size, found.queries) == (str(path), (90, 90), ())
    (named,) = explain_images(model, [path.read_bytes()], sources=["key 7"], dense=False)
    assert named.source == "key 7"


def test_order_of_queries_changes_nothing(model: DeViL) -> None:
    picture = tiny.picture(tiny.CAPTIONS[0])
    options = dict(layers=["layer4"], dense=False, decoding=DECODING)
    first = model.explain(picture, queries=QUERIES, **options).layers["layer4"]
    second = model.explain(picture, queries=QUERIES[::-1], **options).layers["layer4"]
    for query in QUERIES:
        assert abs(first.saliency[query] - second.saliency[query]).max() < 1e-5


def test_prefix_in_batches(model: DeViL) -> None:
    features = {"layer3": torch.randn(7, 192)}
    whole = model.prefix(features)
    torch.testing.assert_close(model.prefix(features, batch_size=3), whole, rtol=1e-5, atol=1e-5)


def test_requests_that_cannot_be_met(model: DeViL, tmp_path: Path) -> None:
    picture = tiny.picture(tiny.CAPTIONS[0])
    with pytest.raises(LayerError, match=r"\['layer9'\]; its layers: layer2, layer3, layer4, all"):
        model.explain(picture, layers=["layer4", "layer9"])
    with pytest.raises(LayerError, match="no layer"):
        model.explain(picture, layers=[])
    with pytest.raises(QueryError, match="has no tokens"):
        model.explain(picture, queries=["circle", " "])
    with pytest.raises(QueryError, match="at least two"):
        model.explain(picture, queries=["circle"], calibration="contrast")
    with pytest.raises(ConfigError, match="odd"):
        model.explain(picture, smoothing=2)
    with pytest.raises(ConfigError, match="context of 64"):
        model.explain(picture, decoding=DecodingConfig(max_new_tokens=100))
    with pytest.raises(ImageError, match="does not exist"):
        model.explain(tmp_path / "nothing.jpg")
    with pytest.raises(ImageError, match="not a picture"):
        model.explain(b"some text")


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_bfloat16_is_near_float32(family: str, tmp_path: Path) -> None:
    model = tiny.tiny_model(tmp_path, family=family)
    picture = tiny.picture(tiny.CAPTIONS[0])
    options = dict(layers=["layer4"], dense=False, queries=["circle", "red circle"])
    exact = model.explain(picture, decoding=DECODING, **options).layers["layer4"]
    means = model.translator.get_buffer("feature_mean_0").clone()
    assert model.to_precision("bfloat16") is model
    assert {p.dtype for p in model.translator.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.language_model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.translator.get_buffer("feature_mean_0"), means)
    rough = model.explain(picture, decoding=DECODING, **options).layers["layer4"]
    for query in ("circle", "red circle"):
        difference = abs(exact.saliency[query] - rough.saliency[query])
        assert 0 < difference.mean() < 0.5
    assert {p.dtype for p in model.to_precision("float32").parameters()} == {torch.float32}
