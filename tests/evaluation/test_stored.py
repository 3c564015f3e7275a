"""Evaluation on stored features: each layer from its own features, the control from others'."""

from pathlib import Path

import pytest
import tiny
import torch

from devil import DecodingConfig, DeViL
from devil.decoding import greedy_captions
from devil.evaluation.captioning import caption_scores
from devil.evaluation.stored import derangement, evaluate_stored, warn_of_shared_rows
from devil.held_out import HeldOut
from devil.types import ALL_LAYERS

DECODING = DecodingConfig(max_new_tokens=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DeViL:
    folder: Path = tmp_path_factory.mktemp("model")
    return tiny.tiny_model(folder, backbone="test_vit", class_tokens=True)


def rows(model: DeViL, count: int) -> HeldOut:
    torch.manual_seed(0)
    features = {s: torch.randn(count, len(v.mean)) for s, v in model.statistics.items()}
    keys = [f"k{i}" for i in range(count)]
    captions = model.prefix(features)
    texts = greedy_captions(model.language_model, captions, DECODING)
    # What the model says of each row from all layers is one of its references.
    return HeldOut(keys, features, [["a red circle", t.text or "nothing"] for t in texts])


def test_scores_by_layer_and_control(model: DeViL) -> None:
    held_out = rows(model, 9)
    result = evaluate_stored(model, held_out, decoding=DECODING, seed=3)
    assert list(result.layers) == [ALL_LAYERS, *model.layers]
    references = dict(zip(held_out.keys, held_out.references, strict=True))
    for layer, texts in result.captions.items():
        layers = model.layers if layer == ALL_LAYERS else (layer,)
        for index, key in enumerate(held_out.keys):
            alone = {
                slot: held_out.features[slot][index : index + 1]
                for name in layers
                for slot in (name, f"{name}.class")
            }
            (caption,) = greedy_captions(model.language_model, model.prefix(alone), DECODING)
            assert texts[key] == caption.text
        assert result.layers[layer] == caption_scores(texts, references)
    assert len({tuple(c.values()) for c in result.captions.values()}) == 3
    assert result.cider() == {layer: s.cider for layer, s in result.layers.items()}
    assert result.shuffled.cider < result.layers[ALL_LAYERS].cider / 2
    assert result.shuffled.keys_hash == result.layers[ALL_LAYERS].keys_hash
    only = evaluate_stored(model, held_out, layers=["blocks.5"], decoding=DECODING, seed=3)
    assert list(only.layers) == ["blocks.5"]
    assert only.shuffled == result.shuffled


def test_the_control_gives_each_row_the_features_of_another(model: DeViL) -> None:
    held_out = rows(model, 9)
    other = derangement(9, 3).tolist()
    texts = greedy_captions(
        model.language_model,
        model.prefix({s: v[other] for s, v in held_out.features.items()}),
        DECODING,
    )
    references = dict(zip(held_out.keys, held_out.references, strict=True))
    wrong = {key: caption.text for key, caption in zip(held_out.keys, texts, strict=True)}
    result = evaluate_stored(model, held_out, layers=[ALL_LAYERS], decoding=DECODING, seed=3)
    assert result.shuffled == caption_scores(wrong, references)


@pytest.mark.parametrize("count", [2, 3, 7, 100])
def test_derangement(count: int) -> None:
    for seed in range(20):
        order = derangement(count, seed)
        assert sorted(order.tolist()) == list(range(count))
        assert not (order == torch.arange(count)).any()
    if count > 3:
        assert not torch.equal(derangement(count, 0), derangement(count, 1))
    assert torch.equal(derangement(count, 4), derangement(count, 4))


def test_pictures_that_were_trained_on_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = tiny.tiny_store(tmp_path, shards=2, rows=3)
    assert warn_of_shared_rows(train, train) == 6
    assert "6 of 6 pictures" in caplog.text and "give a store of other pictures" in caplog.text
