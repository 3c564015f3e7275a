"""Open-vocabulary saliency: scores and calibrations against the reference."""

import inspect
import itertools
from pathlib import Path

import pytest
import reference
import tiny
import torch

from devil.errors import QueryError
from devil.language_model import LanguageModel, load_language_model
from devil.saliency import (
    CALIBRATIONS,
    calibrate,
    plan_queries,
    query_log_probabilities,
    tokenize_queries,
    vocabulary_log_probabilities,
)

QUERIES = ["circle", "red circle", "square", "a white line on the top", "xyzzy"]


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("lm")
    return tiny.load_tiny_language_model(folder, request.param, dtype=torch.float64)


def prefixes(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, tiny.WIDTH, generator=generator, dtype=torch.float64) / 2


@pytest.mark.parametrize("prompt", ["", "a photo of a"])
def test_scores_equal_the_reference(lm: LanguageModel, prompt: str) -> None:
    prefix = prefixes(4)
    queries = tokenize_queries(lm, QUERIES, prompt=prompt)
    assert [q.text for q in queries] == QUERIES
    assert {len(q.ids) for q in queries} > {1}
    assert all(bool(q.prompt_ids) == bool(prompt) for q in queries)
    fast = query_log_probabilities(lm, prefix, queries)
    assert fast.shape == (4, len(QUERIES))
    for row in range(4):
        for index, query in enumerate(queries):
            slow = reference.query_score(lm, prefix[row], query.prompt_ids, query.ids)
            assert float(fast[row, index]) == pytest.approx(slow, rel=1e-9)


def test_one_token_queries_are_a_column_of_the_vocabulary(lm: LanguageModel) -> None:
    prefix = prefixes(4)
    (query,) = tokenize_queries(lm, ["circle"])
    assert len(query.ids) == 1
    table = vocabulary_log_probabilities(lm, prefix)
    assert table.shape == (4, len(lm.tokenizer))
    torch.testing.assert_close(table.exp().sum(dim=1), torch.ones(4, dtype=torch.float64))
    scores = query_log_probabilities(lm, prefix, [query])
    torch.testing.assert_close(scores[:, 0], table[:, query.ids[0]], rtol=1e-12, atol=0)
    for row in range(4):
        slow = reference.log_probabilities(lm, prefix[row], [])[-1]
        torch.testing.assert_close(table[row], slow, rtol=1e-9, atol=1e-12)


def test_order_and_batches_change_nothing(lm: LanguageModel) -> None:
    prefix = prefixes(5)
    queries = tokenize_queries(lm, QUERIES)
    scores = query_log_probabilities(lm, prefix, queries)
    turned = query_log_probabilities(lm, prefix, queries[::-1])
    torch.testing.assert_close(turned.flip(1), scores, rtol=1e-12, atol=1e-12)
    for size in (1, 2, 3):
        split = query_log_probabilities(lm, prefix, queries, batch_size=size)
        torch.testing.assert_close(split, scores, rtol=1e-10, atol=1e-12)
    (alone,) = tokenize_queries(lm, QUERIES[3:4])
    torch.testing.assert_close(
        query_log_probabilities(lm, prefix, [alone])[:, 0], scores[:, 3], rtol=1e-12, atol=1e-12
    )


def test_parts_of_a_query_change_nothing(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix, queries = prefixes(3), tokenize_queries(lm, QUERIES)
    scores = query_log_probabilities(lm, prefix, queries)
    for positions in (1, 2, 5):
        monkeypatch.setattr("devil.memory.HEAD_BYTES", 4 * lm.vocabulary * positions)
        split = query_log_probabilities(lm, prefix, queries)
        torch.testing.assert_close(split, scores, rtol=1e-12, atol=1e-12)


def test_packing_changes_nothing(lm: LanguageModel) -> None:
    """Many queries with prompts of two kinds, in several passes, against one after another."""
    words = [f"{place} side {colour} line" for colour in tiny.COLOURS for place in tiny.PLACES]
    words += ["xyzzy", "circle", "line", "red circle", "red line", *tiny.CAPTIONS[::5]]
    queries = [
        *tokenize_queries(lm, words),
        *tokenize_queries(lm, QUERIES, prompt="a photo of a"),
        *tokenize_queries(lm, ["on the left side", "red"], prompt="a photo"),
    ]
    prefix = prefixes(5)
    assert lm.packs and len(plan_queries(lm, queries).passes) > 1
    packed = query_log_probabilities(lm, prefix, queries)
    lm.packs = False
    try:
        assert plan_queries(lm, queries).passes == ()
        apart = query_log_probabilities(lm, prefix, queries)
    finally:
        del lm.packs
    torch.testing.assert_close(packed, apart, rtol=1e-9, atol=1e-9)


def test_the_prefix_runs_once_and_beginnings_too(lm: LanguageModel) -> None:
    queries = tokenize_queries(lm, ["circle", "red circle", "red square", "red line"])
    lengths: list[tuple[int, ...]] = []
    assert lm.packs and lm.bytes_per_position > 0
    watch = lm.model.base_model.register_forward_pre_hook(
        lambda module, args, options: lengths.append(tuple(options["inputs_embeds"].shape[:2])),
        with_kwargs=True,
    )
    query_log_probabilities(lm, prefixes(4), queries[:1])
    assert lengths == [(4, 3)]  # a query of one token costs nothing more
    lengths.clear()
    query_log_probabilities(lm, prefixes(4)[[0, 1, 2, 3, 2]], queries)
    watch.remove()
    distinct = {q.ids[:i] for q in queries for i in range(1, len(q.ids))}
    assert lengths == [(4, 3), (4, len(distinct))]


def test_saliency_within_a_ten_thousandth_in_float32(tmp_path: Path) -> None:
    for family in tiny.FAMILIES:
        lm = tiny.load_tiny_language_model(tmp_path / family, family)
        queries = tokenize_queries(lm, QUERIES)
        fast = query_log_probabilities(lm, prefixes(6).float(), queries)
        for row, query in itertools.product(range(6), range(len(queries))):
            prompt, ids = queries[query].prompt_ids, queries[query].ids
            slow = reference.query_score(lm, prefixes(6)[row], prompt, ids)
            assert float(fast[row, query]) == pytest.approx(slow, abs=1e-4)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_calibrations_equal_the_reference(lm: LanguageModel, calibration: str) -> None:
    queries = tokenize_queries(lm, QUERIES)
    scores = query_log_probabilities(lm, prefixes(4), queries)
    mean_feature = query_log_probabilities(lm, prefixes(1, seed=9), queries)
    asked = []

    def baseline() -> torch.Tensor:
        asked.append(True)
        return mean_feature

    fast = calibrate(scores, queries, calibration, baseline)  # type: ignore[arg-type]
    assert len(asked) == (calibration == "pmi")
    lengths = [len(q.ids) for q in queries]
    assert len(set(lengths)) > 1
    for row in range(4):
        slow = reference.calibrated(
            scores[row].tolist(), calibration, lengths, mean_feature[0].tolist()
        )
        assert fast[row].tolist() == pytest.approx(slow, rel=1e-9)


def test_calibrations_that_cannot_be(lm: LanguageModel) -> None:
    queries = tokenize_queries(lm, ["circle"])
    scores = query_log_probabilities(lm, prefixes(2), queries)
    with pytest.raises(QueryError, match="at least two queries"):
        calibrate(scores, queries, "contrast", lambda: scores[:1])
    with pytest.raises(QueryError, match="'softmax'; allowed: none, pmi, mean, contrast"):
        # Types are checked under pytest alone; users meet the function itself.
        inspect.unwrap(calibrate)(scores, queries, "softmax", lambda: scores[:1])


def test_queries_that_cannot_be_used(lm: LanguageModel) -> None:
    with pytest.raises(QueryError, match="name one twice"):
        tokenize_queries(lm, ["circle", "line", "circle"])
    with pytest.raises(QueryError, match="has no tokens"):
        tokenize_queries(lm, ["circle", "  "])
    with pytest.raises(QueryError, match="together fit the context"):
        tokenize_queries(lm, ["circle " * tiny.CONTEXT])
    assert tokenize_queries(lm, []) == []


def test_longest_query_still_runs(lm: LanguageModel) -> None:
    """What `tokenize_queries` admits fits the context behind a prefix."""
    words = "circle"
    while len(lm.query_ids(f"{words} circle")[1]) < tiny.CONTEXT // 2 - 1:
        words += " circle"
    queries = tokenize_queries(lm, [words])
    assert torch.isfinite(query_log_probabilities(lm, prefixes(2), queries)).all()


@pytest.mark.real
@pytest.mark.parametrize("name", ["caption-gpt2", "stories260k"])
def test_a_trained_model_prefers_what_fits(name: str, real_data: Path) -> None:
    lm = load_language_model(str(real_data / "models" / name))
    prefix = lm.embed(torch.tensor([lm.caption_ids("the boy was very")]))
    queries = tokenize_queries(lm, ["happy", "happened", "the happy"])
    assert [lm.text(q.ids) for q in queries] == ["happy", "happened", "the happy"]
    happy, happened, phrase = query_log_probabilities(lm, prefix, queries)[0].tolist()
    assert happy > happened + 1
    assert happy > phrase
