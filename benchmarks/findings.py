"""What was to be shown, and what the figures say of it: the first table of the report.

Each finding is decided by the figures themselves, so that a page made of other figures says so;
what no figures can decide here (no images, no weights) is named as not run.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks import published
from devil.evaluation.localiser import CENTRE as CENTRE_MAP
from devil.evaluation.localiser import GRAD_CAM, SHUFFLED, UNTRAINED
from devil.evaluation.neurons import MODEL, NEAREST_UNIT
from devil.evaluation.perturbation_scores import CENTRE, RANDOM
from devil.evaluation.perturbation_scores import SHUFFLED as ANOTHER
from devil.evaluation.perturbation_scores import UNTRAINED as UNTRAINED_MAPS
from devil.evaluation.perturbation_study import DEVIL as MAPS
from devil.evaluation.random_control import RANDOM_BACKBONE
from devil.evaluation.stored import FREQUENT, MEAN, NEAREST
from devil.evaluation.stored import SHUFFLED as OTHER_FEATURES
from devil.report.table import ReportTable
from devil.types import ALL_LAYERS
from pipelines.protocols.ablation import DEVIL
from pipelines.protocols.captioning import COLUMNS

Record = Mapping[str, Any]
COLLAPSE = 0.4
"""Without token dropout a single layer was to keep less than this share."""
LEAD = 1.2
"""DeViL was to score so many times what ClipCap's translator does, as in the paper."""
MINUTES = 90
"""In which all figures were to be made."""
CONTROLS = {
    ANOTHER: "another picture",
    UNTRAINED_MAPS: RANDOM_BACKBONE,
    RANDOM: "random map",
    CENTRE: "centre",
}
"""Of insertion and deletion, and what they are called here."""
DROPOUTS = {
    DEVIL: "with both",
    "token_dropout": "with token dropout alone",
    "no_dropout": "without",
}
"""Variants of the ablation, and what they are called here."""


class Finding(NamedTuple):
    """One line of the table."""

    wanted: str
    verdict: str
    """yes, no, or what lies between."""
    figures: str


def findings_table(records: Mapping[str, Record]) -> ReportTable:
    """A row for each finding whose figures are there."""
    rows = [found for n, find in FINDINGS.items() if n in records for found in find(records[n])]
    if set(FINDINGS) <= set(records):
        rows.append(_time(records))
    return ReportTable(
        title="Findings",
        caption="",
        columns=("what was to be shown", "shown?", "figures"),
        rows=tuple(tuple(row) for row in rows),
    )


def _time(records: Mapping[str, Record]) -> Finding:
    minutes = sum(record["minutes"] for record in records.values())
    return Finding(
        f"all figures by one command in {MINUTES} minutes on two cores",
        _yes(minutes < MINUTES),
        f"{minutes:.0f} minutes",
    )


def _yes(shown: bool) -> str:
    return "yes" if shown else "**no**"


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def _captions(record: Record) -> Iterator[Finding]:
    scores, controls, language = record["scores"], record["controls"], record["language"]
    every = scores[ALL_LAYERS]["cider"]
    blind = {name: controls[name]["cider"] for name in (OTHER_FEATURES, MEAN, FREQUENT, NEAREST)}
    yield Finding(
        "captions say more than controls do",
        _yes(every > max(blind.values())),
        f"CIDEr {every:.3f}; on another photo's features {blind[OTHER_FEATURES]:.3f}, on the mean "
        f"feature {blind[MEAN]:.3f}, caption of the nearest training photo {blind[NEAREST]:.3f}",
    )
    missing = scores[ALL_LAYERS].get("missing", {})
    if missing:
        yield Finding(
            "every caption metric of the paper, and BERTScore",
            "but for " + ", ".join(label for label, name in COLUMNS.items() if name in missing),
            "what they need is below",
        )
    layers = [layer for layer in scores if layer != ALL_LAYERS]
    for name, values, form in (
        ("CIDEr", [scores[layer]["cider"] for layer in layers], ".3f"),
        ("vocabulary", [language[layer]["unique_words"] for layer in layers], "d"),
        ("share of verbs", [language[layer]["verbs"] for layer in layers], ".1%"),
    ):
        yield _trend(f"{name} rises with depth", values, form)
    values = [language[layer]["adjectives"] for layer in layers]
    yield _trend("share of adjectives falls with depth", values, ".1%", sign=-1)


def _trend(wanted: str, values: list[float], form: str, sign: int = 1) -> Finding:
    steps = [sign * (after - before) > 0 for before, after in itertools.pairwise(values)]
    shown = sign * (values[-1] - values[0]) > 0
    verdict = "yes" if all(steps) else "on the whole, not at each step" if shown else _yes(False)
    return Finding(wanted, verdict, ", ".join(format(value, form) for value in values))


def _ablation(record: Record) -> Iterator[Finding]:
    def cider(variant: str, layer: str) -> float:
        return record["variants"][variant]["cider"][layer]["mean"]

    last = list(record["variants"][DEVIL]["cider"])[-1]
    share = cider("no_dropout", last) / cider(DEVIL, last)
    _, with_both = published.ABLATION[DEVIL]
    _, without = published.ABLATION["no_dropout"]
    assert with_both is not None and without is not None
    yield Finding(
        "without token dropout a single layer collapses",
        _yes(share < COLLAPSE),
        f"the last layer alone keeps {share:.2f} of its CIDEr (paper: {without / with_both:.2f})",
    )
    dropouts = {
        label: record["variants"][name]["cider"][ALL_LAYERS]
        for name, label in DROPOUTS.items()
        if name in record["variants"]
    }
    both = dropouts[DROPOUTS[DEVIL]]
    noise = max(found.get("deviation", 0.0) for found in dropouts.values())
    gap = both["mean"] - max(found["mean"] for found in dropouts.values())
    told = ", ".join(f"{found['mean']:.3f} {label}" for label, found in dropouts.items())
    yield Finding(
        "both dropouts are the best, or within noise, on all layers",
        "yes" if gap >= 0 else "yes, level" if -gap <= 2 * noise else "**no**",
        f"{told}; deviation over seeds at most {noise:.3f}",
    )
    if "clipcap" in record["variants"]:
        ratio = both["mean"] / cider("clipcap", ALL_LAYERS)
        yield Finding(
            f"{LEAD:.2f} times what ClipCap's translator scores",
            _yes(ratio >= LEAD),
            f"{ratio:.2f} times, after {record['captions_seen']:,} captions each",
        )


def _localisation(record: Record) -> Iterator[Finding]:
    chosen = record["choosing"]["chosen"]
    learned = record["scores"].get("learned_categories")
    if learned:
        own = learned[chosen]["precision"]
        blind = {
            chosen + SHUFFLED: "on another photo's features",
            chosen + UNTRAINED: f"with a {RANDOM_BACKBONE}",
            CENTRE_MAP: CENTRE_MAP,
        }
        blind = {name: label for name, label in blind.items() if name in learned}
        told = ", ".join(
            f"{label} {learned[name]['precision']['mean']:.3f}" for name, label in blind.items()
        )
        above = [learned[chosen]["above"][name]["precision"]["low"] > 0 for name in blind]
        yield Finding(
            "maps for names lie on their objects",
            _yes(all(above) and own["low"] > learned[chosen]["chance"]),
            f"precision {own['mean']:.3f} [{own['low']:.3f}, {own['high']:.3f}] for names that "
            f"training captions use; by chance {learned[chosen]['chance']:.3f}, {told}",
        )
    equal = record.get("equal_training")
    if equal:
        found = equal["scores"]["learned_categories"]
        name = next(iter(found))
        gain = found[name]["above"][name + UNTRAINED]["precision"]
        yield Finding(
            f"and so they do above a {RANDOM_BACKBONE}'s after as many captions",
            _yes(gain["low"] > 0),
            f"after {equal['model']['captions_seen']:,} captions each "
            f"{found[name]['precision']['mean']:.3f} and "
            f"{found[name + UNTRAINED]['precision']['mean']:.3f}, {_interval(gain)} apart",
        )
    for subset, where in (
        ("learned_imagenet_categories", "on names that training captions use"),
        ("imagenet_categories", "on all names it has a class for"),
    ):
        scores = record["scores"].get(subset, {})
        rivals = [name for name in scores if name.startswith(GRAD_CAM)]
        if rivals:
            own, rival = scores[chosen]["precision"], scores[rivals[0]]["precision"]
            gain = scores[chosen]["above"][rivals[0]]["precision"]
            yield Finding(
                f"maps beat Grad-CAM {where}",
                "**no**, level" if gain["low"] <= 0 <= gain["high"] else _yes(gain["low"] > 0),
                f"precision {own['mean']:.3f}, Grad-CAM {rival['mean']:.3f}, {_interval(gain)} on "
                f"the same {scores[chosen]['maps']} maps",
            )


def _perturbation(record: Record) -> Iterator[Finding]:
    first = next(m for m in next(iter(record["methods"].values())) if m.startswith(MAPS))
    better, worse, told = [], [], []
    for curve, text in (("deletion/mean", "deletion"), ("insertion/blur", "insertion")):
        against = record["differences"][curve]
        sign = -1 if curve.startswith("deletion") else 1
        for control in filter(against.__contains__, CONTROLS):
            ends = [sign * against[control][end] for end in ("low", "high")]
            better.append(min(ends) > 0)
            worse.append(max(ends) < 0)
        areas = record["methods"][curve]
        named = {first: ""} | {m: f"{label} " for m, label in CONTROLS.items() if m in areas}
        told.append(
            f"{text} "
            + ", ".join(f"{label}{areas[m]['area']['mean']:.3f}" for m, label in named.items())
        )
    yield Finding(
        "insertion and deletion tell maps from controls",
        "yes"
        if all(better)
        else f"**no**: {sum(better)} of {len(better)} comparisons won, {sum(worse)} lost",
        f"{record['pictures']} photos; " + "; ".join(told),
    )


def _crops(record: Record) -> Iterator[Finding]:
    layers = record["objects"].get("layers")
    if layers:
        cell = layers[ALL_LAYERS]["fields"]["cell"]
        blind = {
            "captions of another photo": cell["shuffled"],
            "of the mean feature": cell["mean_feature"],
            f"of a {RANDOM_BACKBONE}": cell["random_backbone"],
            "the most frequent category everywhere": cell["constant"],
        }
        blind = {label: value for label, value in blind.items() if value is not None}
        best = max(blind.values())
        told = ", ".join(f"{label} {value:.3f}" for label, value in blind.items())
        low, high = cell["interval"]
        yield Finding(
            "captions of locations name the object there",
            _yes(low > best) if low > best or high < best else "**no**, level",
            f"{cell['hits']:.3f} [{low:.3f}, {high:.3f}] of them; {told}",
        )
    judged = record["image_text"]
    wanted = "shallow layers speak of small crops (an image-text model)"
    if "not_run" in judged:
        yield Finding(wanted, "not run", "no weights of one at hand")
    else:
        layers = [found for name, found in judged["layers"].items() if name != ALL_LAYERS]
        yield _trend(wanted, [found["own"]["mean_best"] for found in layers], ".0f")


def _neurons(record: Record) -> Iterator[Finding]:
    scores = record["rendered_units"]["scores"]
    own, untrained = (
        record[run]["scores"][MODEL]["cider"] for run in ("rendered_units", "random_backbone")
    )
    rival = scores[NEAREST_UNIT]["cider"]
    blind = max(found["cider"] for n, found in scores.items() if n not in (MODEL, NEAREST_UNIT))
    yield Finding(
        "descriptions of (rendered) units beat every constant",
        _yes(own > blind),
        f"CIDEr {own:.2f}; best of the constants and shuffled {blind:.2f}",
    )
    yield Finding(
        f"and those of a {RANDOM_BACKBONE}, and the nearest known unit's",
        _yes(own > max(untrained, rival)),
        f"{RANDOM_BACKBONE} {untrained:.2f}, nearest training unit {rival:.2f}",
    )
    yield Finding("the 13 experiments of MILANNOTATIONS", "not run", "its images are not at hand")


FINDINGS: Mapping[str, Callable[[Record], Iterator[Finding]]] = {
    "captioning": _captions,
    "ablation": _ablation,
    "localisation": _localisation,
    "perturbation": _perturbation,
    "crops": _crops,
    "neurons": _neurons,
}
"""By protocol, in the report's order."""
