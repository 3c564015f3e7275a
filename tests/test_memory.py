"""Batches follow from the budget: it is kept, and changes no result."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from torch.profiler import ProfilerActivity, profile

from devil.config import DecodingConfig
from devil.decoding import greedy_captions
from devil.errors import ConfigError
from devil.free_memory import free_bytes
from devil.language_model import LanguageModel
from devil.memory import batch_rows, budget_bytes, head_rows
from devil.prefill import prefill
from devil.saliency import query_log_probabilities, tokenize_queries
from devil.sampling import sample_captions

ROWS = 400
VOCABULARY = 8192
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["opt", "gpt2", "llama"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny.load_tiny_language_model(tmp_path_factory.mktemp("lm"), request.param)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A language model to which each token of a large vocabulary is as likely."""
    lm = tiny.load_tiny_language_model(tmp_path_factory.mktemp("wide"))
    lm.model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    torch.nn.init.zeros_(lm.model.get_output_embeddings().weight)
    greedy_captions(lm, prefixes(1))  # its weights are packed once
    return lm


def prefixes(rows: int) -> torch.Tensor:
    return torch.randn(rows, 3, tiny.WIDTH, generator=torch.Generator().manual_seed(0)) / 2


def peak(work: Callable[[], object]) -> int:
    """Most bytes that tensors took at once while `work` ran, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def test_peak_stays_under_the_budget(lm: LanguageModel) -> None:
    prefix, queries = prefixes(ROWS), tokenize_queries(lm, ["circle", "a white line on the top"])
    assert lm.packs and lm.bytes_per_position > 0

    def decode(memory: float) -> None:
        greedy_captions(lm, prefix, DecodingConfig(max_new_tokens=20, memory_gb=memory))

    def score(memory: float) -> None:
        query_log_probabilities(lm, prefix, queries, memory_gb=memory)

    for work in (decode, score):
        loose = peak(lambda work=work: work(1.0))
        for budget in (0.5e6, 2e6):
            tight = peak(lambda work=work, budget=budget: work(budget / 1e9))
            assert tight < budget < loose


@pytest.mark.parametrize("top_p", [0.9, 1.0])
@pytest.mark.parametrize("budget", [0.3e6, 5e6])
def test_sampling_from_a_flat_distribution_stays_under_the_budget(
    wide: LanguageModel, top_p: float, budget: float
) -> None:
    (prefix,), memory = prefixes(1), budget / 1e9

    def sample() -> None:
        sample_captions(wide, prefix, 20, top_p=top_p, max_new_tokens=2, memory_gb=memory)

    assert peak(sample) < budget


def test_a_long_query_stays_under_the_budget(
    wide: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devil.memory.HEAD_BYTES", 16 * VOCABULARY)
    (query,) = tokenize_queries(wide, [" ".join(["circle"] * 30)])
    assert len(query.ids) > 7 * head_rows(wide) == 28
    prefix, budget = prefixes(3), 0.7e6

    def score() -> None:
        query_log_probabilities(wide, prefix, [query], memory_gb=budget / 1e9)

    assert peak(score) < budget


def test_estimate_covers_the_reserved_cache(lm: LanguageModel) -> None:
    state = prefill(lm, prefixes(4), 20)
    tensors = [t for layer in state.cache.layers for t in layer.reserved]
    before = 3 + (lm.bos is not None)
    assert sum(t.numel() * t.element_size() for t in tensors) == (
        4 * (before + 20) * lm.bytes_per_position
    )


def test_budget_changes_no_result(lm: LanguageModel) -> None:
    prefix = prefixes(60)
    queries = tokenize_queries(lm, ["circle", "red circle", "a white line on the top"])
    captions = greedy_captions(lm, prefix)
    scores = query_log_probabilities(lm, prefix, queries)
    for memory in (0.0007, 0.003):
        config = DecodingConfig(memory_gb=memory)
        assert [c.text for c in greedy_captions(lm, prefix, config)] == [c.text for c in captions]
        again = query_log_probabilities(lm, prefix, queries, memory_gb=memory)
        torch.testing.assert_close(again, scores, rtol=0, atol=1e-4)


def test_rows_grow_with_the_budget(lm: LanguageModel) -> None:
    def rows(memory: float | None, room: int = 20, limit: int = 10**9) -> int:
        return batch_rows(lm, before=4, room=room, step=1, batch_size=limit, memory_gb=memory)

    assert rows(0.001) < rows(0.002) < rows(0.004)
    assert rows(0.002, room=40) < rows(0.002)
    assert rows(1.0, limit=7) == 7
    assert rows(1000.0) == rows(2000.0)  # a processor's caches are the limit
    with pytest.raises(ConfigError, match=r"memory_gb is 1e-06; one row of 24 tokens needs"):
        rows(1e-6)


def test_default_budget_is_half_of_what_is_free() -> None:
    assert 1e8 < free_bytes(CPU) < 1e14
    assert budget_bytes(CPU, None) == pytest.approx(free_bytes(CPU) / 2, rel=0.3)
    assert budget_bytes(CPU, 1.5) == 1_500_000_000


def test_logits_are_made_in_parts(lm: LanguageModel) -> None:
    assert head_rows(lm) * lm.vocabulary * 4 <= 32 * 2**20


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_budget_is_positive(value: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="memory_gb"):
        DecodingConfig(memory_gb=value)
