"""Scores of units' descriptions: overall, by layer of the described network, and against people.

Every source of captions (the model, its controls, constants, copies) is scored on the same units.
What people reach is measured by leaving one out: each of a unit's descriptions against the others;
for that comparison every caption is scored against the same others, since a second and a third
reference raise any score.
"""

import dataclasses
import itertools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from devil.errors import MissingToolError
from devil.evaluation.bert_scores import BertScoreConfig, bert_f1
from devil.evaluation.captioning import QUICK, CaptionScores, caption_scores, tokenize

logger = logging.getLogger(__name__)

CIDER, BERT_SCORE = "cider", "bert_score"
BY_UNIT = (CIDER, BERT_SCORE)
"""Metrics that give each unit a score of its own."""
HUMAN = "human"
"""A description of the unit itself, left out of its references."""
HUMAN_NEAREST = "training_description_nearest_to_human"
"""The training description whose words (TF-IDF) are most like the one left out: what a perfect
retriever, led by a person, would say."""
CONSTANTS = {metric: f"best_constant_{metric}" for metric in BY_UNIT}
"""Metric → the caption that, said of every training unit, scores best in it."""
CANDIDATES, CONSTANT_UNITS = 50, 500


@dataclass(frozen=True, kw_only=True)
class NeuronScores:
    """Scores by source of captions."""

    overall: Mapping[str, CaptionScores]
    """Corpus scores against all references."""
    layers: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Layer of the described network → source of captions → mean over its units of the scores by
    unit; words are weighed by their rarity over all units, not by layer."""
    units: Mapping[str, int]
    """Layer → units scored."""
    left_out: Mapping[str, Mapping[str, float]]
    """Source of captions → the mean scores against one reference less, with `human` beside them;
    empty where no unit has two descriptions."""
    left_out_rows: int
    """Pairs of a left-out description and its others."""

    def record(self) -> dict[str, Any]:
        """For a results file."""
        return {
            "scores": {name: scores.record() for name, scores in self.overall.items()},
            "layers": self.layers,
            "layer_units": self.units,
            "left_out": self.left_out,
            "left_out_rows": self.left_out_rows,
        }


class LeftOut(NamedTuple):
    """Each description of each unit beside the unit's others."""

    keys: list[str]
    """The unit of each row."""
    texts: list[str]
    others: list[list[str]]


def leave_one_out(references: Mapping[str, Sequence[str]]) -> LeftOut:
    """A row for each description of a unit that has two or more; none where no unit has."""
    rows = LeftOut([], [], [])
    for key, texts in references.items():
        for place, text in enumerate(texts):
            if len(texts) > 1:
                rows.keys.append(key)
                rows.texts.append(text)
                rows.others.append([*texts[:place], *texts[place + 1 :]])
    return rows


def score_neurons(
    captions: Mapping[str, Mapping[str, str]],
    references: Mapping[str, Sequence[str]],
    train: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] = (*QUICK, BERT_SCORE),
    bert: BertScoreConfig | None = None,
) -> NeuronScores:
    """Score several sources of captions, and what people reach.

    Where no unit has two descriptions, people are left out, with a warning.

    Args:
        captions: Source of captions → key → caption; all of the same units.
        references: Key → descriptions.
        train: Descriptions of the training units.
        metrics: As `caption_scores`; by layer and left-out only `cider` and `bert_score`.
        bert: Settings of BERTScore.

    Raises:
        DataError: as `caption_scores`.
    """
    corpus = [metric for metric in metrics if metric != BERT_SCORE]
    overall = {name: caption_scores(c, references, metrics=corpus) for name, c in captions.items()}
    wanted = [m for m in BY_UNIT if m in metrics]
    rows = leave_one_out(references)
    said = _said_beside_people(rows, captions, train)
    keys = list(references)
    by_unit: dict[str, dict[str, np.ndarray]] = {name: {} for name in captions}
    left_out: dict[str, dict[str, float]] = {name: {} for name in said}
    for metric in wanted:
        try:
            full = {name: [texts[key] for key in keys] for name, texts in captions.items()}
            scored = scores_by_unit(metric, full, [references[key] for key in keys], bert)
            others = scores_by_unit(metric, said, rows.others, bert) if said else {}
        except MissingToolError as error:
            logger.warning("%s is left out: %s", metric, error)
            if metric == BERT_SCORE:
                overall = {n: _missing(s, metric, str(error)) for n, s in overall.items()}
            continue
        for name, values in scored.items():
            by_unit[name][metric] = values
            if metric == BERT_SCORE:
                overall[name] = _with(overall[name], metric, float(values.mean()))
        for name, values in others.items():
            left_out[name][metric] = float(values.mean())
    layers = [described_layer(key) for key in keys]
    return NeuronScores(
        overall=overall,
        layers=_means_by_layer(by_unit, layers),
        units=dict(sorted(Counter(layers).items())),
        left_out=left_out,
        left_out_rows=len(rows.keys),
    )


def _said_beside_people(
    rows: LeftOut, captions: Mapping[str, Mapping[str, str]], train: Sequence[Sequence[str]]
) -> dict[str, Sequence[str]]:
    """Source of captions → what it says in each row; without rows there are no sources."""
    if not rows.keys:
        logger.warning(
            "people are not compared: no unit has two descriptions, so none can be left out; give "
            "units with two or more."
        )
        return {}
    said = {name: [texts[key] for key in rows.keys] for name, texts in captions.items()}
    return {**said, HUMAN: rows.texts, HUMAN_NEAREST: nearest_texts(rows.texts, train)}


def described_layer(key: str) -> str:
    """`<model>/<dataset>/<layer>` of a unit's key."""
    return key.rpartition("/")[0]


def _means_by_layer(
    by_unit: Mapping[str, Mapping[str, np.ndarray]], layers: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    places = np.array(layers)
    return {
        layer: {
            name: {metric: float(v[places == layer].mean()) for metric, v in values.items()}
            for name, values in by_unit.items()
        }
        for layer in sorted(set(layers))
    }


def _with(scores: CaptionScores, metric: str, value: float) -> CaptionScores:
    return dataclasses.replace(scores, scores={**scores.scores, metric: value})


def _missing(scores: CaptionScores, metric: str, reason: str) -> CaptionScores:
    return dataclasses.replace(scores, missing={**scores.missing, metric: reason})


def scores_by_unit(
    metric: str,
    captions: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    bert: BertScoreConfig | None = None,
) -> dict[str, np.ndarray]:
    """One score for each caption of each source, in the order of `references`.

    Args:
        metric: one of `BY_UNIT`.
        captions: Source → a caption for each row.
        references: Of each row; tokens are weighed by their rarity in these.
        bert: Settings of BERTScore.

    Raises:
        MissingToolError: Java, or the encoder, is not there.
    """
    if metric == BERT_SCORE:
        config = bert or BertScoreConfig()
        return {n: np.array(bert_f1(texts, references, config)) for n, texts in captions.items()}
    assert metric == CIDER, metric
    from pycocoevalcap.cider.cider import Cider

    # Each different text once: Java starts once, and constants are many times the same.
    every = sorted({t for t in itertools.chain(*captions.values(), *references)})
    tokens = tokenize({str(index): [text] for index, text in enumerate(every)})
    known = {text: tokens[str(index)][0] for index, text in enumerate(every)}
    wanted = {row: [known[text] for text in texts] for row, texts in enumerate(references)}
    result = {}
    for name, texts in captions.items():
        found = {row: [known[text]] for row, text in enumerate(texts)}
        result[name] = np.asarray(Cider().compute_score(wanted, found)[1], dtype=float)
    return result


def best_constants(
    train: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] = BY_UNIT,
    candidates: int = CANDIDATES,
    units: int = CONSTANT_UNITS,
    bert: BertScoreConfig | None = None,
    seed: int = 0,
) -> dict[str, str]:
    """The strongest sentence to say of every unit, found on training units alone.

    Out of the most frequent descriptions, the one with the highest mean score over at most `units`
    random training units; the first of equals in order of frequency.

    Returns:
        Name in `CONSTANTS` → caption; a metric that cannot run here has none.
    """
    counts = Counter(text for unit in train for text in unit)
    ranked = sorted(counts, key=lambda text: (-counts[text], text))[:candidates]
    chosen = np.random.default_rng([seed, 4]).permutation(len(train))[:units]
    references = [train[int(index)] for index in chosen]
    result = {}
    for metric in metrics:
        try:
            if metric == BERT_SCORE:  # in one call, which embeds each text once
                said = {"": [text for text in ranked for _ in references]}
                flat = scores_by_unit(metric, said, references * len(ranked), bert)[""]
                means = flat.reshape(len(ranked), len(references)).mean(axis=1)
            else:
                said = {text: [text] * len(references) for text in ranked}
                scored = scores_by_unit(metric, said, references, bert)
                means = np.array([scored[text].mean() for text in ranked])
        except MissingToolError as error:
            logger.warning("no constant is chosen by %s: %s", metric, error)
            continue
        result[CONSTANTS[metric]] = ranked[int(means.argmax())]
    return result


def nearest_texts(texts: Sequence[str], train: Sequence[Sequence[str]]) -> list[str]:
    """For each text the most similar one of `train`: cosine of TF-IDF over words and word pairs."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    pool = sorted({text for unit in train for text in unit})
    vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b").fit(pool)
    bank = vectors.transform(pool)
    nearest: list[str] = []
    for start in range(0, len(texts), 512):
        similar = vectors.transform(texts[start : start + 512]) @ bank.T
        nearest += [pool[int(index)] for index in np.asarray(similar.argmax(axis=1)).ravel()]
    return nearest
