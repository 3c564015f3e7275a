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

from benchmarks import published
from devil.errors import DataError
from devil.evaluation.bootstrap import Interval
from devil.evaluation.localiser import CENTRE, GRAD_CAM, RANDOM
from devil.evaluation.stored import SHUFFLED
from devil.files import write_atomically
from devil.report.chart import Panel, write_chart
from devil.report.table import Cell, ReportTable
from devil.types import ALL_LAYERS
from pipelines.cli import run_script
from pipelines.protocols.ablation import DEVIL, ablation_table
from pipelines.protocols.captioning import captioning_table, language_table
from pipelines.protocols.localisation import LocalisationOptions
from pipelines.protocols.perturbation import figure as perturbation_figure

logger = logging.getLogger("results")

Record = Mapping[str, Any]
TEMPLATE = "results.md.jinja"
PREPARATION = "preparation"
"""Name of the record of what comes before the protocols."""
PREPARATION_LABEL = "trainings, two at a time, one core each"
PROTOCOLS = ("captioning", "ablation", "localisation", "perturbation", "crops", "neurons")
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
        notes=notes(records),
        pictures=pictures.name,
        tables={
            name: {key: make(records[name]).markdown() for key, make in tables.items()}
            for name, tables in TABLES.items()
            if name in records
        },
        kept=kept,
        lean=lean(records["ablation"]) if "ablation" in records else None,
        missing=[name for name in PROTOCOLS if name not in records],
    )
    write_atomically(report, text.encode())
    logger.info("%s", report)


def kept(record: Record, number: int) -> str:
    """A table that a protocol kept with its figures, in Markdown under its caption."""
    table = record["tables"][number]
    rows = tuple(tuple(row) for row in table["rows"])
    made = ReportTable(**{**table, "columns": tuple(table["columns"]), "rows": rows})
    return f"{made.caption.rstrip('.')}:\n\n{made.markdown()}"


def _machines(records: Mapping[str, Record]) -> list[Record]:
    """Every machine once."""
    found = {json.dumps(r["machine"], sort_keys=True): r["machine"] for r in records.values()}
    return list(found.values())


def notes(records: Mapping[str, Record]) -> dict[str, list[str]]:
    """What somebody wrote beside figures → the protocols that it was written for."""
    found: dict[str, list[str]] = {}
    for name, record in records.items():
        if "note" in record:
            found.setdefault(record["note"], []).append(name)
    return found


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


def published_language(record: Record) -> ReportTable:
    """DeViL, Tables 3 and 4."""
    return ReportTable(
        title="DeViL, Tables 3 and 4",
        caption="CC3M",
        columns=("paper", "CIDEr, %", "adjectives, %", "verbs, %", "unique words"),
        rows=tuple((n, published.LAYERS[n], *published.LANGUAGE[n]) for n in published.LAYERS),
    )


def ablation_ratios(record: Record) -> ReportTable:
    """CIDEr relative to both dropouts, ours and the paper's."""
    variants = record["variants"]
    best_every, best_last = published.ABLATION[DEVIL]
    layers = (ALL_LAYERS, list(variants[DEVIL]["cider"])[-1])
    rows: list[tuple[Cell, ...]] = []
    for name, (every, last) in published.ABLATION.items():
        if name not in variants:
            continue
        ours = [_cider(record, name, layer) / _cider(record, DEVIL, layer) for layer in layers]
        theirs = [every / best_every, last and last / best_last]
        rows.append((name.replace("_", " "), ours[0], theirs[0], ours[1], theirs[1]))
    return ReportTable(
        title="Ratios",
        caption="CIDEr relative to both dropouts",
        columns=("translator", "all: ours", "all: paper", "last: ours", "last: paper"),
        rows=tuple(rows),
    )


def without_dropout(record: Record) -> ReportTable:
    """What a layer alone keeps without token dropout: of CIDEr, and of its gap to the control."""
    control = record["controls"][SHUFFLED]["cider"]
    rows: list[tuple[Cell, ...]] = []
    for layer in record["variants"][DEVIL]["cider"]:
        without, both = (_cider(record, name, layer) for name in ("no_dropout", DEVIL))
        rows.append((layer, both, without, without / both, (without - control) / (both - control)))
    return ReportTable(
        title="Without dropout",
        caption="CIDEr",
        columns=("layer", "both dropouts", "none", "keeps", "keeps of the gap to shuffled"),
        rows=tuple(rows),
    )


def lean(record: Record) -> dict[str, float]:
    """CIDEr of what is compared in words, relative to both dropouts; `worst`: share of a gap."""
    kept = without_dropout(record).rows
    variants = {"clipcap": "clipcap", "none": "no_dropout"}
    every = _cider(record, DEVIL, ALL_LAYERS)
    return {
        "last": float(kept[-1][3] or 0),
        "worst": min(float(row[4] or 0) for row in kept[1:]),
        **{name: _cider(record, v, ALL_LAYERS) / every for name, v in variants.items()},
    }


def _cider(record: Record, variant: str, layer: str) -> float:
    return record["variants"][variant]["cider"][layer]["mean"]


def around_the_best(record: Record) -> ReportTable:
    """The chosen setting of maps, and those that differ from it in one thing."""
    choosing = record["choosing"]
    scores = choosing["scores"]["learned_categories"]
    asked = choosing["options"]
    varied: dict[str, Any] = {
        k: tuple(asked[k]) for k in ("layers", "prompts", "synonyms", "neighbours")
    }
    options = LocalisationOptions(model="", instances="", photos="", output="", **varied)
    settings = {setting.name: vars(setting) for setting in options.settings(())}
    best = settings[record["chosen"]]
    near = [
        name
        for name, values in settings.items()
        if sum(values[key] != best[key] for key in best) <= 1
    ]
    near.sort(key=lambda name: -scores[name]["precision"]["mean"])
    blind = [name for name in scores if name.startswith(GRAD_CAM) or name in (RANDOM, CENTRE)]
    first = scores[record["chosen"]]
    return ReportTable(
        title="Settings",
        caption=f"{first['photos']} photos, {first['maps']} maps",
        columns=("setting", "pointing", "precision", "maps"),
        rows=tuple(
            (
                name,
                Interval(**scores[name]["pointing"]).text,
                Interval(**scores[name]["precision"]).text,
                scores[name]["maps"],
            )
            for name in (*near, *blind)
        ),
    )


def published_perturbation(record: Record) -> ReportTable:
    """DeViL, Table 5."""
    rows = []
    for stage, found in published.PERTURBATION.items():
        rows.append((stage, *found["insertion"], *found["deletion"]))
    return ReportTable(
        title="DeViL, Table 5",
        caption="CLIP-RN50",
        columns=(
            *("paper", "insertion, Grad-CAM", "insertion, DeViL"),
            *("deletion, Grad-CAM", "deletion, DeViL"),
        ),
        rows=tuple(rows),
    )


def published_neurons(record: Record) -> ReportTable:
    """Mean BERTScore over the 13 experiments."""
    return ReportTable(
        title="MILANNOTATIONS",
        caption="13 experiments",
        columns=("paper", "mean BERTScore"),
        rows=tuple(published.NEURONS.items()),
    )


TABLES: Mapping[str, Mapping[str, Callable[[Record], ReportTable]]] = {
    "captioning": {
        "scores": captioning_table,
        "language": language_table,
        "published": published_language,
    },
    "ablation": {
        "scores": ablation_table,
        "ratios": ablation_ratios,
        "without_dropout": without_dropout,
    },
    "localisation": {"settings": around_the_best},
    "perturbation": {"published": published_perturbation},
    "neurons": {"published": published_neurons},
}
CHARTS: Mapping[str, Callable[[Record, Path], None]] = {
    "captioning": draw_layers,
    "perturbation": draw_perturbation,
}


if __name__ == "__main__":
    run_script(ResultsOptions, results, __doc__ or "")
