"""Tables of the report that no protocol printed: beside the papers' figures, and shortened ones."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import published
from devil.evaluation.bootstrap import Interval
from devil.evaluation.localiser import CENTRE, GRAD_CAM, RANDOM, UNTRAINED
from devil.evaluation.random_control import RANDOM_BACKBONE
from devil.evaluation.stored import SHUFFLED as OTHER_FEATURES
from devil.report.table import Cell, ReportTable
from devil.types import ALL_LAYERS
from pipelines.protocols.ablation import DEVIL, ablation_table
from pipelines.protocols.captioning import captioning_table, language_table
from pipelines.protocols.localisation_tables import CONTROLS, TITLES, gain_text, rivals_of

Record = Mapping[str, Any]


def rounded(cell: Cell) -> Cell:
    """A figure that rounds to nothing is nothing."""
    return 0.0 if isinstance(cell, float) and abs(cell) < 0.0005 else cell


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
    control = record["controls"][OTHER_FEATURES]["cider"]
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


def around_the_best(choosing: Record) -> ReportTable:
    """The chosen setting of maps, and those that differ from it in one thing.

    Where it smooths or contrasts, also those that differ in one thing from the same without.
    """
    scores, settings = choosing["scores"]["learned_categories"], choosing["settings"]
    best = settings[choosing["chosen"]]
    centres = (best, {**best, "smoothing": 1, "contrast": "none"})
    near = [
        name
        for name, values in settings.items()
        if min(sum(values[key] != centre[key] for key in centre) for centre in centres) <= 1
    ]
    near.sort(key=lambda name: -scores[name]["precision"]["mean"])
    blind = [name for name in scores if name.startswith(GRAD_CAM) or name in (RANDOM, CENTRE)]
    first = scores[choosing["chosen"]]
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


def maps_table(record: Record, subset: str) -> ReportTable:
    """Pointing, precision and overlap of one subset of categories, in short.

    The part of the settings' names that all of them share is left out: it is told once.
    """
    scores, chosen = record["scores"][subset], record["choosing"]["chosen"]
    _, _, shared = chosen.partition(", ")
    controls = {e: c for e, c in CONTROLS.items() if any(name.endswith(e) for name in scores)}
    rivals = rivals_of(scores)
    rows: list[tuple[Cell, ...]] = []
    for name, found in scores.items():
        if name.endswith(tuple(CONTROLS)):
            continue
        beside = [scores.get(name + ending) for ending in controls]
        row: list[Cell] = [name.removesuffix(f", {shared}")]
        for measure in ("pointing", "precision"):
            row.append(Interval(**found[measure]).text)
            row += [control[measure]["mean"] if control else None for control in beside]
        row += [gain_text(found, rival) for rival in rivals]
        rows.append((*row, found["overlap"]["mean"], found["maps"]))
    first = scores[chosen]
    return ReportTable(
        title=TITLES[subset],
        caption=f"{first['photos']} photos, {first['maps']} maps of {first['categories']} "
        f"categories; by chance {first['chance']:.3f}",
        columns=(
            *("map", "pointing", *controls.values(), "precision", *controls.values()),
            *(f"precision − {rival}'s" for rival in rivals),
            *("IoU", "maps"),
        ),
        rows=tuple(rows),
    )


def equal_training_table(record: Record) -> ReportTable:
    """The chosen setting's maps beside the control's, after as many captions, by subset."""
    scores = record["equal_training"]["scores"]
    rows: list[tuple[Cell, ...]] = []
    for subset in (name for name in TITLES if name in scores):
        own = next(iter(scores[subset]))
        found, control = scores[subset][own], scores[subset][own + UNTRAINED]
        gain = found["above"][own + UNTRAINED]
        row: list[Cell] = [TITLES[subset].removeprefix("Maps for ")]
        for measure in ("pointing", "precision"):
            row += [found[measure]["mean"], control[measure]["mean"]]
            row.append(Interval(**gain[measure]).text)
        rows.append((*row, found["maps"]))
    columns = ((name, RANDOM_BACKBONE, "difference") for name in ("pointing", "precision"))
    return ReportTable(
        title="Equal training",
        caption="",
        columns=("maps for", *(head for heads in columns for head in heads), "maps"),
        rows=tuple(rows),
    )


def cells_table(record: Record) -> ReportTable:
    """Captions against what covers the location's own cell, by layer."""
    layers = record["objects"]["layers"]
    columns = ("shuffled", "mean_feature", "constant")
    untrained = any(v["fields"]["cell"].get("random_backbone") is not None for v in layers.values())
    columns += ("random_backbone",) if untrained else ()
    heads = {"constant": "most frequent category"}
    rows: list[tuple[Cell, ...]] = []
    for layer, found in layers.items():
        cell, contested = found["fields"]["cell"], found["contested"]["cell"]
        named = Interval(cell["hits"], *cell["interval"]).text
        values = (cell[name] for name in columns)
        against = (contested["hits"], contested["shuffled"])
        rows.append((layer, named, *values, cell["locations"], *against))
    return ReportTable(
        title="Objects named",
        caption="",
        columns=(
            *("layer", "named", *(heads.get(name, name.replace("_", " ")) for name in columns)),
            *("locations", "named, contested", "shuffled, contested"),
        ),
        rows=tuple(rows),
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


def units_table(record: Record) -> ReportTable:
    """Scores of the rendered units' descriptions, with the control of a random backbone."""
    own, control = record["rendered_units"]["tables"][0], record["random_backbone"]["tables"][0]
    model, *rest = own["rows"]
    untrained = (f"control: {RANDOM_BACKBONE}", *control["rows"][0][1:])
    return ReportTable(
        title=own["title"],
        caption=own["caption"],
        columns=tuple(own["columns"]),
        rows=tuple(tuple(map(rounded, row)) for row in (model, untrained, *rest)),
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
    "crops": {"cells": cells_table},
    "perturbation": {"published": published_perturbation},
    "neurons": {"units": units_table, "published": published_neurons},
}
