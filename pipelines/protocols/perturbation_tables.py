"""Tables and the picture of insertion and deletion: a method in each row, a curve in each panel."""

from collections.abc import Mapping, Sequence
from typing import Any

from devil.evaluation.perturbation import Curve
from devil.evaluation.perturbation_scores import MethodScores, is_control, paired_differences
from devil.evaluation.perturbation_study import DEVIL
from devil.report.curves import Line, Panel, curves_png
from devil.report.table import ReportTable

FALLS, RISES = "lower is better", "higher is better"


def area_table(
    scores: Mapping[Curve, Mapping[str, MethodScores]], pictures: int, steps: int, note: str = ""
) -> ReportTable:
    """A row for each method, a column for each curve; `note` ends the caption."""
    return ReportTable(
        title="Insertion and deletion",
        caption=(
            f"area under the probability of the predicted class, {pictures} pictures, {steps} "
            "steps; 95 % bootstrap intervals. Deletion: lower is better; insertion: higher. "
            f"none, pmi and mean rank locations alike, so they are one measurement{note}"
        ),
        columns=("method", *(f"{curve.measure}, {curve.baseline}" for curve in scores)),
        rows=tuple(
            (method, *(rows[method].area.text for rows in scores.values()))
            for method in next(iter(scores.values()))
        ),
    )


def difference_table(
    scores: Mapping[Curve, Mapping[str, MethodScores]], first: str, seed: int
) -> ReportTable:
    """The first setting minus each other method, on the same pictures."""
    differences = {c: paired_differences(rows, first, seed) for c, rows in scores.items()}
    return ReportTable(
        title=f"{first} minus the others",
        caption="mean difference on the same pictures; deletion: negative is better",
        columns=("minus", *(f"{curve.measure}, {curve.baseline}" for curve in scores)),
        rows=tuple(
            (method, *(rows[method].text for rows in differences.values()))
            for method in next(iter(differences.values()))
        ),
    )


def short_names(methods: Sequence[str]) -> dict[str, str]:
    """Names for a picture: DeViL's settings without the parts that all of them share."""
    settings = {m: m.removeprefix(DEVIL).split("/") for m in methods if m.startswith(DEVIL)}
    shared = set.intersection(*map(set, settings.values())) if len(settings) > 1 else set()
    kept = {m: "/".join(p for p in parts if p not in shared) for m, parts in settings.items()}
    return {m: DEVIL + kept[m] if m in kept else m for m in methods}


def figure(found: Mapping[str, Any]) -> bytes:
    """Mean curves, a panel for each measure and baseline; a PNG's bytes."""
    panels, names = [], short_names(list(next(iter(found["methods"].values()))))
    for name, rows in found["methods"].items():
        measure, baseline = name.split("/")
        falls = measure == "deletion"
        lines = [
            Line(name=names[m], values=s["curve"], number=s["area"]["mean"], control=is_control(m))
            for m, s in rows.items()
        ]
        panels.append(
            Panel(
                title=f"{measure.title()}, {baseline}",
                note=FALLS if falls else RISES,
                positions=found["positions"],
                lines=lines,
                lower_is_better=falls,
            )
        )
    return curves_png(
        f"Insertion and deletion on {found['pictures']} pictures",
        panels,
        along="share of the pixels, most salient first",
        up="probability of the predicted class",
    )
