"""The gate: worse than the current model, or no better than chance, does not pass."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import tiny

from devil.batches import clean_rows
from devil.config import DecodingConfig
from devil.errors import ConfigError, GateError, LayerError
from devil.evaluation.gate import GateConfig, GateScores, gate_scores, judge
from devil.evaluation.stored import evaluate_stored

CONFIG = GateConfig(margin=0.02, above_control=0.1)


def scores(score: float, shuffled: float = 0.0) -> GateScores:
    return GateScores(version="v", score=score, shuffled=shuffled, rows=5, keys_hash="k")


@pytest.mark.parametrize(
    ("candidate", "current", "passed", "reason"),
    [
        (scores(0.5), None, True, "it is the first"),
        (scores(0.5, 0.45), None, False, "learned too little.*distance of 0.0500, where 0.1"),
        (scores(0.5), scores(0.5), True, "not worse"),
        (scores(0.49), scores(0.5), True, "not worse"),
        (scores(0.47), scores(0.5), False, "worse.* 0.4700, the current one's 0.5000, the margin"),
        (scores(0.6, 0.55), scores(0.5), False, "learned too little"),
        (scores(math.nan), None, False, "learned too little"),
        (scores(0.5, math.nan), None, False, "learned too little"),
        (scores(0.5), scores(math.nan), False, "worse"),
    ],
)
def test_verdicts(
    candidate: GateScores, current: GateScores | None, passed: bool, reason: str
) -> None:
    verdict = judge(candidate, current, CONFIG)
    assert verdict.passed is passed
    assert re.search(reason, verdict.reason), verdict.reason
    assert verdict.to_dict()["candidate"]["shuffled"] is candidate.shuffled


def test_scores_on_different_rows_are_not_compared() -> None:
    other = dataclasses.replace(scores(0.1), keys_hash="others", rows=6)
    with pytest.raises(GateError, match=r"on 5 rows \(keys k\), the current one on 6 .*others"):
        judge(scores(0.5), other, CONFIG)


@pytest.mark.parametrize(("metric", "layer"), [("rouge_l", "all"), ("bleu_1", "layer3")])
def test_scores_are_the_evaluations(metric: str, layer: str, tmp_path: Path) -> None:
    store = tiny.tiny_store(tmp_path, shards=1, rows=6)
    model = tiny.tiny_model(tmp_path / "frozen")
    decoding = DecodingConfig(max_new_tokens=6)
    found = gate_scores(model, store, GateConfig(metric=metric, layer=layer), decoding)
    rows = clean_rows(store, model.layers, False)
    expected = evaluate_stored(model, rows, decoding=decoding)
    assert found.score == expected.layers[layer][metric]
    assert found.shuffled == expected.shuffled[metric]
    assert (found.rows, found.keys_hash) == (6, expected.shuffled.keys_hash)
    assert found.version == model.version


def test_a_layer_that_the_model_lacks(tmp_path: Path) -> None:
    model = tiny.tiny_model(tmp_path / "frozen")
    store = tiny.tiny_store(tmp_path, shards=1, rows=2)
    with pytest.raises(LayerError, match="not trained for"):
        gate_scores(model, store, GateConfig(layer="layer9"), DecodingConfig())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metric": "spice"}, "metric is 'spice'; allowed: cider"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"margin": math.nan}, "margin is nan"),
        ({"above_control": 0.0}, "above_control is 0.0; allowed: above 0"),
    ],
)
def test_values_that_make_no_sense(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GateConfig(**values)
