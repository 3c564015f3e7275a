"""The whole vocabulary at every location: likeliest words and the map of any word."""

import math
from pathlib import Path

import numpy as np
import pytest
import reference
import tiny
import torch

from devil.describing import vocabulary_saliency
from devil.errors import QueryError
from devil.model import DeViL
from devil.picture_features import image_features, location_features

PROMPT = "a photo of a"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DeViL:
    return tiny.tiny_model(tmp_path_factory.mktemp("model"))


def table(model: DeViL, layer: str, prompt: str) -> torch.Tensor:
    """(row, vocab): the reference's log-probabilities at each location."""
    lm = model.language_model
    features = image_features(model, [tiny.picture(tiny.CAPTIONS[0])])
    vectors, _ = location_features(model, features, layer)
    before = lm.query_ids("circle", prompt=prompt)[0]
    rows = model.prefix(vectors)
    return torch.stack([reference.log_probabilities(lm, row, before)[-1] for row in rows])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_words_are_tokens_that_are_written_so(family: str, tmp_path: Path) -> None:
    lm = tiny.load_tiny_language_model(tmp_path, family)
    assert {"circle", "red", "side"} <= set(lm.words)
    for word, token in lm.words.items():
        assert word.isalpha()
        assert lm.query_ids(word)[1] == [token]
        assert lm.text([token]) == word
    others = set(range(len(lm.tokenizer))) - set(lm.words.values())
    assert {lm.eos, lm.tokenizer("rcle", add_special_tokens=False)["input_ids"][-1]} <= others


@pytest.mark.parametrize("prompt", ["", PROMPT])
@pytest.mark.parametrize("calibration", ["none", "pmi"])
def test_maps_equal_the_reference(model: DeViL, prompt: str, calibration: str) -> None:
    picture, lm = tiny.picture(tiny.CAPTIONS[0]), model.language_model
    found = model.vocabulary_saliency(
        picture,
        layers="layer4",
        calibration=calibration,  # type: ignore[arg-type]
        prompt=prompt,
        top=5,
    )
    assert list(found) == ["layer4"]
    maps = found["layer4"]
    scores = table(model, "layer4", prompt)
    allowed = scores > (math.log(1e-4) if calibration == "pmi" else -math.inf)
    if calibration == "pmi":
        before = lm.query_ids("circle", prompt=prompt)[0]
        mean = model.prefix(model.mean_features(["layer4"]))[0]
        scores = scores - reference.log_probabilities(lm, mean, before)[-1]
    height, width = maps.grid
    for word in ("circle", "red", "side"):
        expected = scores[:, lm.words[word]].reshape(height, width)
        np.testing.assert_allclose(maps.map(word), expected.numpy(), atol=1e-4)
    for cell, row, right in zip((c for r in maps.top for c in r), scores, allowed, strict=True):
        words = [w for w, token in lm.words.items() if right[token]]
        best = sorted((float(row[lm.words[w]]) for w in words), reverse=True)[:5]
        assert [score for _, score in cell] == pytest.approx(best, abs=1e-4)
        for word, score in cell:
            assert float(row[lm.words[word]]) == pytest.approx(score, abs=1e-4)


def test_one_pass_over_the_prefixes(model: DeViL) -> None:
    """The map of every word costs what one query of one token costs."""
    lm, picture = model.language_model, tiny.picture(tiny.CAPTIONS[0])
    assert lm.packs and lm.bytes_per_position > 0
    shapes: list[tuple[int, ...]] = []
    watch = lm.model.base_model.register_forward_pre_hook(
        lambda module, args, options: shapes.append(tuple(options["inputs_embeds"].shape[:2])),
        with_kwargs=True,
    )
    maps = model.vocabulary_saliency(picture, layers="layer4", calibration="none")["layer4"]
    for word in maps.words:
        maps.map(word)
    watch.remove()
    assert shapes == [(maps.grid[0] * maps.grid[1], 3)]


def test_a_map_is_that_of_the_query(model: DeViL) -> None:
    picture = tiny.picture(tiny.CAPTIONS[5])
    explained = model.explain(picture, queries=["circle"], dense=False)
    found = model.vocabulary_saliency(picture)
    assert list(found) == list(explained.layers)
    for layer, maps in found.items():
        saliency = explained.layers[layer].saliency["circle"]
        np.testing.assert_allclose(maps.map("circle"), saliency, atol=1e-4)


def test_several_pictures(model: DeViL) -> None:
    pictures = [tiny.picture(caption) for caption in tiny.CAPTIONS[:3]]
    together = vocabulary_saliency(model, pictures, layers=["layer3"])
    for picture, maps in zip(pictures, together, strict=True):
        alone = model.vocabulary_saliency(picture, layers=["layer3"])["layer3"]
        np.testing.assert_allclose(maps["layer3"].map("red"), alone.map("red"), atol=1e-4)
    assert vocabulary_saliency(model, []) == []


def test_requests_that_cannot_be_met(model: DeViL) -> None:
    picture = tiny.picture(tiny.CAPTIONS[0])
    maps = model.vocabulary_saliency(picture, layers="layer4")["layer4"]
    with pytest.raises(QueryError, match=r"'red circle' is not one token.*as a query"):
        maps.map("red circle")
    with pytest.raises(QueryError, match="top is 0"):
        model.vocabulary_saliency(picture, top=0)
