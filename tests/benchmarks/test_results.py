"""The report of the measurements: made from the committed figures, and honest about gaps."""

import json
from pathlib import Path

import pytest

from benchmarks.evaluation import PROTOCOLS as MEASURED
from benchmarks.evaluation import without_places
from benchmarks.results import PROTOCOLS, ResultsOptions, results
from devil.errors import DataError
from devil.evaluation.localiser import CENTRE, GRAD_CAM, SHUFFLED, UNTRAINED

ROOT = Path(__file__).parents[2]


def test_the_committed_report_is_that_of_the_committed_figures(tmp_path: Path) -> None:
    figures = ROOT / "benchmarks" / "results" / "evaluation"
    results(ResultsOptions(results=str(figures), report=str(tmp_path / "RESULTS.md")))
    report = (ROOT / "docs" / "RESULTS.md").read_text()
    assert (tmp_path / "RESULTS.md").read_text() == report
    for picture in (tmp_path / "results").iterdir():
        assert f"results/{picture.name}" in report
        assert (ROOT / "docs" / "results" / picture.name).is_file()


def test_the_readme_tells_the_committed_figures() -> None:
    figures = ROOT / "benchmarks" / "results" / "evaluation"
    records = {path.stem: json.loads(path.read_text()) for path in figures.glob("*.json")}
    text = (ROOT / "README.md").read_text().split("## Real photos")[1].split("\n## ")[0]
    captions, maps = records["captioning"], records["localisation"]
    scores, controls = captions["scores"], captions["controls"]
    layers = ("blocks.11", "blocks.8", "blocks.5", "blocks.2")
    nearest, constant = controls["nearest_training_photo"], controls["most_frequent_caption"]
    for row in (
        f"| all layers | {scores['all']['cider']:.3f} |",
        " / ".join(f"`{layer}`" for layer in layers)
        + " alone | "
        + " / ".join(f"{scores[layer]['cider']:.3f}" for layer in layers),
        f"another photo's features | {controls['shuffled']['cider']:.3f} |",
        f"one constant caption | {nearest['cider']:.3f} / {constant['cider']:.3f} |",
        f"{captions['training_minutes']:.0f} minutes on one of two cores",
        f"took {sum(record['minutes'] for record in records.values()):.0f} minutes",
    ):
        assert row in text
    best, own = maps["choosing"]["chosen"], maps["scores"]["learned_categories"]
    both = maps["scores"]["learned_imagenet_categories"]
    known = maps["scores"]["imagenet_categories"]
    (rival,) = (name for name in known if name.startswith(GRAD_CAM))
    twin = next(iter(maps["equal_training"]["scores"]["learned_categories"].values()))
    tried = maps["choosing"]["scores"]["learned_categories"]
    told = [own[name] for name in (best, best + SHUFFLED, best + UNTRAINED, CENTRE)]
    told += [both[best], both[rival], known[best], known[rival], twin]
    told += [
        tried[best.replace(f", {p}", "")] for p in ('"a photo of a"', "synonyms", "neighbours 1")
    ]
    told += [tried[name + best[best.index(",") :]] for name in ("all", "blocks.8")]
    for score in told:
        assert f"{score['precision']['mean']:.3f}" in text
    gain = both[best]["above"][rival]["precision"]
    assert f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" in text
    assert f"{own[best]['maps']} maps" in text and f"{known[best]['maps']} maps" in text


def test_what_was_not_run_is_named(tmp_path: Path) -> None:
    results(ResultsOptions(results=str(tmp_path), report=str(tmp_path / "RESULTS.md")))
    text = (tmp_path / "RESULTS.md").read_text()
    assert set(PROTOCOLS) == set(MEASURED)
    for name in PROTOCOLS:
        assert f"`{name}` on these photos" in text


def test_no_report_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nowhere; run"):
        results(ResultsOptions(results=str(tmp_path / "nowhere"), report=str(tmp_path / "R.md")))
    assert not (tmp_path / "R.md").exists()


def test_figures_name_no_place_of_their_machine(tmp_path: Path) -> None:
    data, output = tmp_path / "photos", tmp_path / "runs" / "real"
    record = {"model": f"{output}/model", "images": [f"{data}/imagenet"], "seed": 3}
    found = without_places(record, data, output)
    assert found == {"model": "real/model", "images": ["DEVIL_REAL_DATA/imagenet"], "seed": 3}
