"""What the engine is measured against computes what the equations say."""

import pytest
import reference
import tiny
import torch

from benchmarks.baselines import (
    batched_captions,
    batched_saliency,
    batched_training_loss,
    batched_vocabulary,
    generated,
    location_prefixes,
    plain_captions,
    plain_saliency,
    plain_training_loss,
)
from devil.model import DeViL
from devil.saliency import tokenize_queries

LOCATIONS = [0, 3]
LAYER = "layer3"


@pytest.fixture(scope="module", params=["opt", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DeViL:
    return tiny.tiny_model(tmp_path_factory.mktemp("model"), family=request.param).double()


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, tiny.SIDE, tiny.SIDE, generator=generator, dtype=torch.float64)


def prefix_by_the_equations(model: DeViL, location: int) -> torch.Tensor:
    assert model.backbone is not None
    vector = model.backbone(images())[LAYER].map[0].flatten(1)[:, location]
    config = model.translator.config
    return reference.translator_prefix(
        model.translator.state_dict(),
        model.translator.slots,
        {LAYER: vector},
        {LAYER},
        heads=config.heads,
        depth=config.depth,
    )


def test_prefixes(model: DeViL) -> None:
    found = location_prefixes(model, images(), LAYER, LOCATIONS)
    for row, location in zip(found, LOCATIONS, strict=True):
        expected = prefix_by_the_equations(model, location)
        torch.testing.assert_close(row.detach(), expected, rtol=1e-8, atol=1e-9)


def test_scores(model: DeViL) -> None:
    lm = model.language_model
    queries = tokenize_queries(lm, ["circle", "red line on the"], prompt="a")
    plain = plain_saliency(model, images(), LAYER, LOCATIONS, queries)
    batched = batched_saliency(model, images(), LAYER, LOCATIONS, queries, batch_size=3)
    for i, location in enumerate(LOCATIONS):
        prefix = prefix_by_the_equations(model, location)
        for j, query in enumerate(queries):
            expected = reference.query_score(lm, prefix, query.prompt_ids, query.ids)
            assert float(plain[i, j]) == pytest.approx(expected, rel=1e-5)
            assert float(batched[i, j]) == pytest.approx(expected, rel=1e-5)
        table = batched_vocabulary(model, images(), LAYER, LOCATIONS)[i]
        expected = reference.log_probabilities(lm, prefix, [])[-1]
        torch.testing.assert_close(table.double(), expected, rtol=1e-5, atol=1e-5)


def test_captions(model: DeViL) -> None:
    expected = [
        reference.greedy(model.language_model, prefix_by_the_equations(model, i), 8)[0]
        for i in LOCATIONS
    ]
    assert plain_captions(model, images(), LAYER, LOCATIONS, 8) == expected
    assert batched_captions(model, images(), LAYER, LOCATIONS, 8) == expected


def test_samples_differ_and_follow_the_model(model: DeViL) -> None:
    lm = model.language_model
    prefix = location_prefixes(model, images(), LAYER, [0]).detach()
    torch.manual_seed(0)
    rows = generated(lm, prefix.expand(400, -1, -1), 4, top_p=0.9)
    first = torch.tensor([row[0] for row in rows]).bincount(minlength=len(lm.tokenizer)) / 400
    p = reference.log_probabilities(lm, prefix[0], [])[-1].exp()
    ranked, order = p.sort(descending=True)
    kept = order[ranked.cumsum(0) - ranked < 0.9]
    expected = torch.zeros_like(p).index_copy(0, kept, p[kept] / p[kept].sum())
    assert not (first[expected == 0] > 0).any()
    assert (first - expected).abs().sum() < 0.5 < (first - 1 / len(p)).abs().sum()


@pytest.mark.parametrize("each", [1, 2])
def test_training_losses(model: DeViL, each: int) -> None:
    lm, translator = model.language_model, model.translator
    generator = torch.Generator().manual_seed(1)
    features = {
        slot: torch.randn(3, len(translator.get_buffer(f"feature_mean_{i}")), generator=generator)
        for i, slot in enumerate(translator.slots)
    }
    features = {slot: values.double() for slot, values in features.items()}
    visible = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])
    texts = ["a red circle", "line", "a white line on the top side", "a", "a green", "square"]
    captions = [lm.caption_ids(text) for text in texts[: 3 * each]]
    prefix = translator(features, visible)
    total, count = reference.caption_loss(lm, prefix, captions)
    for loss in (plain_training_loss, batched_training_loss):
        found = loss(translator, lm, features, visible, captions)
        assert float(found.detach()) == pytest.approx(float(total.detach()) / count, rel=1e-5)
