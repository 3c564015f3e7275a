"""Tables of crop coherence: a score beside its controls in each row."""

from collections.abc import Mapping, Sequence

from devil.evaluation.crops import LayerCrops
from devil.evaluation.field_coherence import LayerFields
from devil.evaluation.random_control import RANDOM_BACKBONE
from devil.report.table import Cell, ReportTable


def crop_tables(
    scores: Mapping[str, LayerCrops], sizes: Sequence[int], count: int, note: str = ""
) -> list[ReportTable]:
    """Best crops by layer, and by how much captions fit the crops better than others' captions.

    `note` ends the caption of the first, which has controls with captions of their own.
    """
    heads = tuple(f"{size} px" for size in sizes)
    untrained = any(score.random_backbone is not None for score in scores.values())
    controls = ("shuffled", "mean feature", *([RANDOM_BACKBONE] if untrained else ()))
    rows = []
    for layer, score in scores.items():
        blind = (score.shuffled, score.mean_feature, score.random_backbone)
        means = tuple(found.mean_best for found in blind if found is not None)
        rows.append((layer, *score.own.best, score.own.mean_best, *means))
    shares = ReportTable(
        title="Best crop",
        caption=f"Share of {count} pictures by the centre crop that the central caption fits best, "
        f"and its mean side beside the same for the captions of controls{note}",
        columns=("layer", *heads, "mean side", *controls),
        rows=tuple(rows),
    )
    gaps = ReportTable(
        title="Similarity to crops",
        caption="Mean cosine of the own caption less that of another picture's",
        columns=("layer", *heads),
        rows=tuple(
            (
                layer,
                *(a - b for a, b in zip(s.own.similarity, s.shuffled.similarity, strict=True)),
            )
            for layer, s in scores.items()
        ),
    )
    return [shares, gaps]


def field_table(scores: Mapping[str, LayerFields], count: int, note: str = "") -> ReportTable:
    """A row for each layer and field; `note` ends the caption."""
    every = [found for score in scores.values() for found in score.fields.values()]
    untrained = any(found.random_backbone is not None for found in every)
    random = (RANDOM_BACKBONE,) if untrained else ()
    rows = []
    for layer, score in scores.items():
        for name, found in score.fields.items():
            contested = score.contested[name]
            values = (found.hits, found.shuffled, found.mean_feature, found.constant)
            values += (found.random_backbone,) if untrained else ()
            against: tuple[Cell, ...] = (contested.hits, contested.shuffled)
            against += (contested.random_backbone,) if untrained else ()
            best = "best" if name == score.best else None
            rows.append(
                (layer, name, *values, found.locations, *against, contested.locations, best)
            )
    return ReportTable(
        title="Objects named",
        caption=f"Share of locations in {count} pictures whose caption names the category that "
        "covers the field around them, beside controls; contested: where the fields' categories "
        f"differ{note}",
        columns=(
            *("layer", "field", "named", "shuffled", "mean feature", "most frequent", *random),
            *("locations", "contested", "contested, shuffled"),
            *(f"contested, {name}" for name in random),
            *("contested locations", "agrees"),
        ),
        rows=tuple(rows),
    )
