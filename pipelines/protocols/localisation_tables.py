"""Tables of localisation: a method in each row, its score beside its own controls."""

from collections.abc import Mapping, Sequence
from typing import Any

from devil.evaluation.bootstrap import Interval
from devil.evaluation.localiser import SHUFFLED, UNTRAINED
from devil.evaluation.random_control import RANDOM_BACKBONE, control_note
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
    rivals = rivals_of(scores)
    return ReportTable(
        title=TITLES[subset],
        caption=(
            f"{first['photos']} photos, {first['maps']} maps of {first['categories']} categories; "
            f"chance of pointing and precision: {first['chance']:.3f} (the object's share). "
            f"IoU: of the highest {document['fixed_area']:.0%}, and of the best share of the data "
            "set. Differences from rivals: on the maps that both have. In brackets: 95 % bootstrap "
            "intervals over photos"
            f"{control_note(document)}"
        ),
        columns=(
            *("method", "pointing", *controls.values(), "precision", *controls.values()),
            *(f"precision − {rival}'s" for rival in rivals),
            *("IoU", "best IoU", "pointing / category", "precision / category", "maps"),
        ),
        rows=tuple(
            _row(method, found, [scores.get(method + ending) for ending in controls], rivals)
            for method, found in scores.items()
            if not method.endswith(tuple(CONTROLS))
        ),
    )


def _row(
    method: str,
    score: Mapping[str, Any],
    controls: Sequence[Mapping[str, Any] | None],
    rivals: Sequence[str],
) -> tuple[Cell, ...]:
    return (
        method,
        Interval(**score["pointing"]).text,
        *(found["pointing"]["mean"] if found else None for found in controls),
        Interval(**score["precision"]).text,
        *(found["precision"]["mean"] if found else None for found in controls),
        *(gain_text(score, rival) for rival in rivals),
        Interval(**score["overlap"]).text,
        score["best_overlap"],
        score["category_pointing"],
        score["category_precision"],
        score["maps"],
    )


def rivals_of(scores: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Methods without controls of their own that settings are compared with, map by map."""
    compared = (name for score in scores.values() for name in score.get("above", {}))
    return tuple(sorted({name for name in compared if not name.endswith(tuple(CONTROLS))}))


def gain_text(score: Mapping[str, Any], rival: str) -> str | None:
    """What a setting's precision is above a rival's; None for a rival itself."""
    gains = score.get("above", {}).get(rival)
    return gains and Interval(**gains["precision"]).text
