"""Model + held-out features → caption scores and language of every layer, beside their controls.

    python pipelines/evaluate.py captioning runs/cc3m/model features/cc3m-val \\
        --train features/cc3m --output runs/cc3m/evaluation

Writes `captions.json` (what was said of every picture, by its key) and `captioning.json` (scores,
kinds of words, the keys' hash, versions) into the output folder, and prints the tables.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro

from devil.config import DecodingConfig
from devil.evaluation.bert_scores import BertScoreConfig
from devil.evaluation.captioning import EVERY, check_metrics
from devil.evaluation.language import language_statistics
from devil.evaluation.random_control import measured
from devil.evaluation.stored import (
    CONTROLS,
    MEAN,
    SHUFFLED,
    describe_stored,
    score_stored,
    stored_rows,
    warn_of_shared_rows,
)
from devil.evaluation.tool_versions import tool_versions
from devil.features import FeatureStore
from devil.files import write_json
from devil.model import DeViL
from devil.report.table import ReportTable
from pipelines.pool import own_device

logger = logging.getLogger("captioning")

COLUMNS = {
    "BLEU-1": "bleu_1",
    "BLEU-2": "bleu_2",
    "BLEU-3": "bleu_3",
    "BLEU-4": "bleu_4",
    "METEOR": "meteor",
    "ROUGE-L": "rouge_l",
    "CIDEr": "cider",
    "SPICE": "spice",
    "BERTScore": "bert_score",
}

PEOPLE = "control: people"
"""The row of the references' own language."""


@dataclass(frozen=True, kw_only=True)
class CaptioningOptions:
    """Options of the captions' evaluation."""

    model: tyro.conf.Positional[str]
    """Model folder or hub id."""
    store: tyro.conf.Positional[str]
    """Feature store of pictures that were not trained on."""
    output: str
    """Folder of the results."""
    train: str | None = None
    """Feature store that was trained on; the controls that copy its captions need it."""
    metrics: tuple[str, ...] = EVERY
    """Caption metrics; what cannot run here is named with its reason."""
    bert: BertScoreConfig = field(default_factory=BertScoreConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    seed: int = 0
    """Of the shuffled control."""

    def __post_init__(self) -> None:
        check_metrics(self.metrics)


def captioning(options: CaptioningOptions) -> dict[str, Any]:
    """Measure a model; returns what `captioning.json` holds.

    Raises:
        ModelFolderError, FeatureStoreError: an input cannot be used.
        DataError: a metric is unknown, or a picture has no caption.
    """
    device = own_device()
    model = DeViL.from_pretrained(options.model, device=device, load_backbone=False)
    rows = stored_rows(model, FeatureStore.open(options.store))
    train = stored_rows(model, FeatureStore.open(options.train)) if options.train else None
    logger.info("%d pictures, %d layers", len(rows.keys), len(model.layers))
    if options.train:
        warn_of_shared_rows(FeatureStore.open(options.store), FeatureStore.open(options.train))
    if train is None:
        logger.warning("without --train, the controls that copy its captions are left out")
    said = describe_stored(
        model,
        rows,
        controls=CONTROLS if train else (SHUFFLED, MEAN),
        train=train,
        decoding=options.decoding,
        seed=options.seed,
    )
    write_json(Path(options.output) / "captions.json", said.layers)
    found = score_stored(said, rows, metrics=options.metrics, bert=options.bert)
    language = {name: language_statistics(c.values()) for name, c in found.captions.items()}
    written = (text for texts in rows.references for text in texts)
    language[PEOPLE] = language_statistics(written)
    results = {
        **measured(model, None),
        "store": options.store,
        "scores": {layer: scores.record() for layer, scores in found.layers.items()},
        "controls": {name: scores.record() for name, scores in found.controls.items()},
        "language": {layer: asdict(statistics) for layer, statistics in language.items()},
        "versions": tool_versions(),
    }
    write_json(Path(options.output) / "captioning.json", results)
    for table in (captioning_table(results), language_table(results)):
        print("\n" + table.text())
    for metric, reason in next(iter(found.layers.values())).missing.items():
        print(f"\n{metric} is missing: {reason}")
    print(f"\nwritten: {options.output}/captioning.json, captions.json")
    return results


def captioning_table(results: Mapping[str, Any]) -> ReportTable:
    """A row for each layer and each control, a column for each metric that ran."""
    named = dict(results["scores"])
    named |= {f"control: {n.replace('_', ' ')}": s for n, s in results["controls"].items()}
    first = next(iter(named.values()))
    columns = {head: name for head, name in COLUMNS.items() if name in first}
    apart = len({scores["keys_hash"] for scores in named.values()}) > 1
    if apart:
        columns |= {"pictures": "rows", "keys": "keys_hash"}
        caption = "scores of rows with different keys are of different pictures"
    else:
        caption = f"{first['rows']} pictures, keys {first['keys_hash']}"
    return ReportTable(
        title="Captions of pictures",
        caption=caption,
        columns=("layer", *columns),
        rows=tuple(
            (label, *(scores.get(name) for name in columns.values()))
            for label, scores in named.items()
        ),
    )


def language_table(results: Mapping[str, Any]) -> ReportTable:
    """Kinds of words by layer."""
    columns = ("adjectives", "verbs", "unique_words", "words")
    return ReportTable(
        title="Language by layer",
        caption="Shares of all words in the captions, and how many different ones there are",
        columns=("layer", *(name.replace("_", " ") for name in columns)),
        rows=tuple(
            (layer, *(found[name] for name in columns))
            for layer, found in results["language"].items()
        ),
    )
