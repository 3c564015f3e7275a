"""How the evaluation chooses a setting of maps, with scores that are made up."""

from typing import Any

import pytest

from benchmarks import evaluation
from benchmarks.evaluation import chosen_setting
from benchmarks.result_tables import around_the_best
from devil.evaluation.map_setting import MapSetting
from pipelines.protocols.localisation import LocalisationOptions

WANTED = LocalisationOptions(
    model="m",
    instances="i",
    photos="p",
    output="o",
    layers=("a", "b"),
    prompts=("", "the"),
    neighbours=(0.0, 1.0),
)


def score(setting: MapSetting, *, helps: str) -> float:
    """The prompt helps, and one of the dearer things."""
    found = 0.1 * (setting.layers == ("b",)) + 0.1 * (setting.prompt == "the")
    return found + 0.1 * (helps in setting.name) + 0.01 * (setting.neighbours == 0)


@pytest.mark.parametrize(
    ("helps", "name"),
    [
        ("smoothing 3", 'b, "the", synonyms, smoothing 3'),
        ("contrast pmi", 'b, "the", synonyms, contrast pmi'),
        ("neither", 'b, "the", synonyms'),
    ],
)
def test_the_dearer_settings_are_tried_with_the_best_of_the_others(
    monkeypatch: pytest.MonkeyPatch, helps: str, name: str
) -> None:
    asked = []

    def measured(options: LocalisationOptions) -> dict[str, Any]:
        settings = options.settings(())
        asked.append([setting.name for setting in settings])
        interval = {"low": 0.0, "high": 1.0}
        scores = {
            s.name: {
                "precision": {"mean": score(s, helps=helps), **interval},
                "pointing": {"mean": 0.5, **interval},
                "maps": 9,
                "photos": 5,
            }
            for s in settings
        }
        return {"scores": {"all_categories": dict(scores), "learned_categories": scores}}

    monkeypatch.setattr(evaluation, "localisation", measured)
    found, best = chosen_setting(WANTED)
    assert best.name == name
    cheap, smoothed, contrasted = asked
    assert len(cheap) == 8
    assert smoothed == [f'b, "the", synonyms, smoothing {size}' for size in (3, 5)]
    assert contrasted == [f'b, "the", synonyms, contrast {kind}' for kind in ("names", "pmi")]
    everything = {*cheap, *smoothed, *contrasted}
    assert set(found["settings"]) == everything == set(found["scores"]["all_categories"])
    table = around_the_best(found)
    assert table.rows[0][0] == name
    assert len(table.rows) == 8  # with one other layer, prompt, and weight, and four dearer ones
