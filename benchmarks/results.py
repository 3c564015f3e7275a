"""`docs/RESULTS.md` from the figures in `benchmarks/results/evaluation`.

    python benchmarks/results.py

The prose is in `results.md.jinja`; this file makes its tables and pictures.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.findings import FINDINGS, findings_table
from benchmarks.result_tables import (
    TABLES,
    Record,
    around_the_best,
    equal_training_table,
    lean,
    maps_table,
    rounded,
)
from devil.errors import DataError
from devil.files import write_atomically
from devil.report.chart import Panel, write_chart
from devil.report.table import ReportTable
from pipelines.cli import run_script
from pipelines.protocols.perturbation_tables import figure as perturbation_figure
from pipelines.protocols.perturbation_tables import short_names

logger = logging.getLogger("results")

TEMPLATE = "results.md.jinja"
PREPARATION = "preparation"
"""Name of the record of what comes before the protocols."""
PREPARATION_LABEL = "trainings, and the units' features, two at a time, one core each"
PROTOCOLS = tuple(FINDINGS)
"""In the report's order."""


@dataclass(frozen=True, kw_only=True)
class ResultsOptions:
    """Options of the report."""

    results: str = "benchmarks/results/evaluation"
    """Folder of the figures."""
    report: str = "docs/RESULTS.md"
    """The report; its pictures go to a folder of the same name in lower case beside it."""


def results(options: ResultsOptions) -> None:
    """Write the report and its pictures.

    Raises:
        DataError: there is no folder of figures.
    """
    if not Path(options.results).is_dir():
        raise DataError(
            f"there is no folder {options.results}; run benchmarks/evaluation.py first."
        )
    report = Path(options.report)
    pictures = report.parent / report.stem.lower()
    pictures.mkdir(parents=True, exist_ok=True)
    files = sorted(Path(options.results).glob("*.json"))
    records = {path.stem: json.loads(path.read_text()) for path in files}
    for name, draw in CHARTS.items():
        if name in records:
            draw(records[name], pictures / f"{name}.png")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(TEMPLATE).render(
        records=records,
        machines=_machines(records),
        minutes=minutes_table(records).markdown(),
        pictures=pictures.name,
        tables={
            name: {key: make(records[name]).markdown() for key, make in tables.items()}
            for name, tables in TABLES.items()
            if name in records
        },
        findings=findings_table(records).markdown(),
        kept=kept,
        maps=maps,
        settings=settings,
        equal_training=lambda record: equal_training_table(record).markdown(),
        agreements=agreements,
        lean=lean(records["ablation"]) if "ablation" in records else None,
        missing=[name for name in PROTOCOLS if name not in records],
    )
    write_atomically(report, text.encode())
    logger.info("%s", report)


def kept(record: Record, number: int) -> str:
    """A table that a protocol kept with its figures, in Markdown under its caption.

    Settings of maps that stand in its rows are named without what all of them share, and figures
    that round to nothing are nothing.
    """
    table = record["tables"][number]
    names = short_names([str(row[0]) for row in table["rows"]])
    rows = tuple((names[str(row[0])], *map(rounded, row[1:])) for row in table["rows"])
    columns = tuple(table["columns"])
    made = ReportTable(title="", caption="", columns=columns, rows=rows)
    return f"{table['caption'].rstrip('.')}:\n\n{made.markdown()}"


def maps(record: Record, subset: str) -> str:
    """The short table of one subset of categories, under its caption."""
    made = maps_table(record, subset)
    return f"{made.title}: {made.caption}.\n\n{made.markdown()}"


def settings(choosing: Record) -> str:
    """What was tried to choose a setting of maps, around the best."""
    return around_the_best(choosing).markdown()


def agreements(record: Record) -> str:
    """The field that each layer's captions of locations agree with best, in words."""
    layers = record["objects"]["layers"]
    return ", ".join(f"{found['best'] or 'none'} at `{name}`" for name, found in layers.items())


def _machines(records: Mapping[str, Record]) -> list[Record]:
    """Every machine once."""
    found = {json.dumps(r["machine"], sort_keys=True): r["machine"] for r in records.values()}
    return list(found.values())


def minutes_table(records: Mapping[str, Record]) -> ReportTable:
    """What the trainings took, each protocol after them, and all together."""
    rows = [
        (PREPARATION_LABEL if n == PREPARATION else n, r["minutes"]) for n, r in records.items()
    ]
    rows.sort(key=lambda row: row[0] != PREPARATION_LABEL)
    rows.append(("all", sum(minutes for _, minutes in rows)))
    return ReportTable(
        title="Time",
        caption="",
        columns=("what", "minutes"),
        rows=tuple((what, f"{minutes:.1f}") for what, minutes in rows),
    )


def draw_layers(record: Record, path: Path) -> None:
    """CIDEr, vocabulary and verbs by layer."""
    scores, language, controls = record["scores"], record["language"], record["controls"]
    layers = [layer for layer in scores if layer != "all"]
    names = {
        "nearest_training_photo": "nearest photo",
        "most_frequent_caption": "one caption",
        "shuffled": "shuffled",
    }

    def panel(title: str, found: Mapping[str, Record], key: str, **more: Any) -> Panel:
        levels = {"all layers": found["all"][key]} | more.pop("levels", {})
        lines = {"one layer": [found[layer][key] for layer in layers]}
        return Panel(title=title, x=layers, x_label="layer", lines=lines, controls=levels, **more)

    levels = {text: controls[name]["cider"] for name, text in names.items() if name in controls}
    write_chart(
        path,
        [
            panel("CIDEr", scores, "cider", levels=levels),
            panel("Unique words", language, "unique_words"),
            panel("Verbs among all words", language, "verbs", percent=True),
        ],
    )


def draw_perturbation(record: Record, path: Path) -> None:
    """Mean curves, a panel for each measure and baseline."""
    write_atomically(path, perturbation_figure(record))


CHARTS: Mapping[str, Callable[[Record, Path], None]] = {
    "captioning": draw_layers,
    "perturbation": draw_perturbation,
}


if __name__ == "__main__":
    run_script(ResultsOptions, results, __doc__ or "")
