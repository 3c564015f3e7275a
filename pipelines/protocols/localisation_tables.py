"""Tables of localisation: a method in each row, its score beside its own controls."""

from collections.abc import Mapping, Sequence
from typing import Any

from devil.evaluation.bootstrap import Interval
from devil.evaluation.localiser import SHUFFLED, UNTRAINED
from devil.evaluation.random_control import RANDOM_BACKBONE
from devil.report.table import Cell, ReportTable

TITLES = {
    "all_categories": "Maps for names of all categories",
    "imagenet_categories": "Maps for categories with an ImageNet class",
    "learned_categories": "Maps for categories that training captions name",
    "learned_imagenet_categories": "Maps for categories of both kinds",
}
"""Of the tables, by the subset of categories."""
CONTROLS = {SHUFFLED: "shuffled", UNTRAINED: RANDOM_BACKBONE}
"""Endings of the names of controls that belong to one setting each, and their columns."""


def localisation_table(document: Mapping[str, Any], subset: str) -> ReportTable:
    """A row for each method, beside its control with another photo's features."""
    scores = document["scores"][subset]
    first = next(iter(scores.values()))
    controls = {e: c for e, c in CONTROLS.items() if any(m.endswith(e) for m in scores)}
    return ReportTable(
        title=TITLES[subset],
        caption=(
            f"{first['photos']} photos, {first['maps']} maps of {first['categories']} categories; "
            f"chance of pointing and precision: {first['chance']:.3f} (the object's share). "
            f"IoU: of the highest {document['fixed_area']:.0%}, and of the best share of the data "
            "set. In brackets: 95 % bootstrap intervals over photos."
        ),
        columns=(
            *("method", "pointing", *controls.values(), "precision", *controls.values()),
            *("IoU", "best IoU", "pointing / category", "precision / category", "maps"),
        ),
        rows=tuple(
            _row(method, found, [scores.get(method + ending) for ending in controls])
            for method, found in scores.items()
            if not method.endswith(tuple(CONTROLS))
        ),
    )


def _row(
    method: str, score: Mapping[str, Any], controls: Sequence[Mapping[str, Any] | None]
) -> tuple[Cell, ...]:
    return (
        method,
        Interval(**score["pointing"]).text,
        *(found["pointing"]["mean"] if found else None for found in controls),
        Interval(**score["precision"]).text,
        *(found["precision"]["mean"] if found else None for found in controls),
        Interval(**score["overlap"]).text,
        score["best_overlap"],
        score["category_pointing"],
        score["category_precision"],
        score["maps"],
    )
