"""The gate before a release: is the new model good enough to take the current one's place?

Both are scored on the same held-out rows. The new one must not be worse than the current one by
more than a margin, and must describe pictures better from their own features than from those of
others: a model that has learned nothing is refused even where there is nothing to compare it with.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from devil.config import DecodingConfig
from devil.errors import ConfigError, GateError
from devil.evaluation.captioning import CaptionScores
from devil.evaluation.stored import SHUFFLED, evaluate_stored, stored_rows
from devil.features import FeatureStore
from devil.model import DeViL
from devil.types import ALL_LAYERS

METRICS: Mapping[str, str] = {
    "cider": "cider",
    "bleu_1": "bleu",
    "bleu_4": "bleu",
    "rouge_l": "rouge_l",
    "meteor": "meteor",
}
"""Scores that can decide, each with the metric that measures it."""


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """What decides whether a new model is released."""

    metric: str = "cider"
    """`cider`, `bleu_1`, `bleu_4`, `rouge_l` or `meteor`."""
    layer: str = ALL_LAYERS
    """Layer whose captions are scored; `all`: of all layers together."""
    margin: float = 0.02
    """The new model's score may be below the current one's by so much."""
    above_control: float = 0.05
    """The new model's score must be above that of its own captions for other pictures' features
    by so much."""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(f"metric is {self.metric!r}; allowed: {', '.join(METRICS)}.")
        if not self.margin >= 0:
            raise ConfigError(f"margin is {self.margin!r}; allowed: at least 0.")
        if not self.above_control > 0:
            raise ConfigError(f"above_control is {self.above_control!r}; allowed: above 0.")


@dataclass(frozen=True, kw_only=True)
class GateScores:
    """One model on the held-out rows."""

    version: str
    """Digest of the translator's weights."""
    score: float
    """By the gate's metric and layer."""
    shuffled: float
    """The same for captions from other pictures' features."""
    rows: int
    keys_hash: str
    """Equal hashes, equal held-out rows."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate says, and what it looked at."""

    passed: bool
    reason: str
    candidate: GateScores
    current: GateScores | None
    config: GateConfig

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


def gate_scores(
    model: DeViL, store: FeatureStore, config: GateConfig, decoding: DecodingConfig
) -> GateScores:
    """Score a model for the gate.

    Raises:
        FeatureStoreError: the store holds features of another backbone, or lacks a layer.
        LayerError: the model has no such layer.
        MissingToolError: the metric cannot run here.
    """
    (layer,) = model.chosen_layers(config.layer)
    found = evaluate_stored(
        model,
        stored_rows(model, store),
        layers=(layer,),
        controls=(SHUFFLED,),
        decoding=decoding,
        metrics=(METRICS[config.metric],),
    )
    scores: CaptionScores = found.layers[layer]
    return GateScores(
        version=model.version,
        score=scores[config.metric],
        shuffled=found.shuffled[config.metric],
        rows=scores.rows,
        keys_hash=scores.keys_hash,
    )


def judge(candidate: GateScores, current: GateScores | None, config: GateConfig) -> Verdict:
    """Decide, and say why; a score that is not a number never passes.

    Raises:
        GateError: the two were scored on different rows.
    """
    if current is not None and current.keys_hash != candidate.keys_hash:
        raise GateError(
            f"the new model was scored on {candidate.rows} rows (keys {candidate.keys_hash}), the "
            f"current one on {current.rows} (keys {current.keys_hash}): the held-out features "
            "changed meanwhile. Start again when nothing is extracted into them."
        )
    name = f"{config.metric} of {config.layer}"
    distance = candidate.score - candidate.shuffled
    learned = (
        f"{name} is {candidate.score:.4f}, and {candidate.shuffled:.4f} on other pictures' "
        f"features: a distance of {distance:.4f}, where {config.above_control:g} is asked for"
    )
    if not distance >= config.above_control:
        passed, reason = False, f"it has learned too little: {learned}"
    elif current is None:
        passed, reason = True, f"it is the first: {learned}"
    else:
        passed = candidate.score >= current.score - config.margin
        comparison = "not worse" if passed else "worse"
        reason = (
            f"it is {comparison} than the current one: {name} is {candidate.score:.4f}, the "
            f"current one's {current.score:.4f}, the margin {config.margin:g}"
        )
    return Verdict(
        passed=passed, reason=reason, candidate=candidate, current=current, config=config
    )
