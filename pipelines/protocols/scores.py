"""Files of captions and references → caption scores, whatever model the captions come from.

    python pipelines/evaluate.py scores captions.json references.tsv --output runs/scores \\
        --metrics cider meteor

The forms of the files are in `devil.data.caption_files`; `captions.json` of the captioning protocol
is one, with a set for each layer. Writes `scores.json` into the output folder, prints the tables.
"""

import functools
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro

from devil.data.caption_files import Captions, check_keys, read_candidates, read_references
from devil.evaluation.bert_scores import BertScoreConfig
from devil.evaluation.captioning import EVERY, caption_scores, check_metrics
from devil.evaluation.controls import most_frequent_caption
from devil.evaluation.language import language_statistics
from devil.evaluation.stored import derangement
from devil.evaluation.tool_versions import tool_versions
from devil.files import write_json
from pipelines.protocols.captioning import captioning_table, language_table

logger = logging.getLogger("scores")

SHUFFLED = "shuffled"
"""Every picture gets the caption that another one was given, in the first set."""
FREQUENT = "most_frequent_reference"
"""Every picture gets the reference that occurs most often among all."""


@dataclass(frozen=True, kw_only=True)
class ScoresOptions:
    """Options of scoring given captions."""

    candidates: tyro.conf.Positional[str]
    """Captions to score, one for each key: .json, .jsonl or .tsv."""
    references: tyro.conf.Positional[str]
    """What people wrote, one or more for each key: .json, .jsonl or .tsv."""
    output: str
    """Folder of the results."""
    metrics: tuple[str, ...] = EVERY
    """Caption metrics; what cannot run here is named with its reason."""
    bert: BertScoreConfig = field(default_factory=BertScoreConfig)
    strict: bool = False
    """Refuse captions that leave out a key of the references; else these keys are not scored."""
    language: bool = False
    """Count kinds of words, too (English)."""
    seed: int = 0
    """Of the shuffled control."""

    def __post_init__(self) -> None:
        check_metrics(self.metrics)


def scores(options: ScoresOptions) -> dict[str, Any]:
    """Score captions beside their controls; returns what `scores.json` holds.

    Raises:
        DataError: a file cannot be used; captions and references do not belong together; or a
            metric is unknown.
    """
    sets = read_candidates(options.candidates)
    references = read_references(options.references)
    unscored = {
        name: check_keys(texts, references, name=name, strict=options.strict)
        for name, texts in sets.items()
    }
    score = functools.partial(
        caption_scores, references=references, metrics=options.metrics, bert=options.bert
    )
    found = {name: score(texts) for name, texts in sets.items()}
    first = next(iter(sets.values()))
    controls = {
        name: score(texts) for name, texts in _controls(first, references, options.seed).items()
    }
    results: dict[str, Any] = {
        "candidates": options.candidates,
        "references": options.references,
        "scores": {name: values.record() for name, values in found.items()},
        "controls": {name: values.record() for name, values in controls.items()},
        "keys_without_caption": unscored,
        "metrics": list(options.metrics),
        "bert": asdict(options.bert),
        "seed": options.seed,
        "versions": tool_versions(),
    }
    tables = [captioning_table(results)]
    if options.language:
        counted = {name: language_statistics(texts.values()) for name, texts in sets.items()}
        results["language"] = {name: asdict(values) for name, values in counted.items()}
        tables.append(language_table(results))
    path = write_json(Path(options.output) / "scores.json", results)
    for table in tables:
        print("\n" + table.text())
    for metric, reason in next(iter(found.values())).missing.items():
        print(f"\n{metric} is missing: {reason}")
    print(f"\nwritten: {path}")
    return results


def _controls(
    first: Mapping[str, str], references: Captions, seed: int
) -> dict[str, dict[str, str]]:
    keys = sorted(first)
    constant = most_frequent_caption([references[key] for key in keys])
    controls = {FREQUENT: dict.fromkeys(keys, constant)}
    if len(keys) > 1:
        other = derangement(len(keys), seed).tolist()
        shuffled = {key: first[keys[i]] for key, i in zip(keys, other, strict=True)}
        controls = {SHUFFLED: shuffled} | controls
    return controls
