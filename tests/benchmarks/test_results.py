"""The report of the measurements: made from the committed figures, and honest about gaps."""

from pathlib import Path

import pytest

from benchmarks.evaluation import PROTOCOLS as MEASURED
from benchmarks.evaluation import without_places
from benchmarks.results import PROTOCOLS, ResultsOptions, results
from devil.errors import DataError

ROOT = Path(__file__).parents[2]


def test_the_committed_report_is_that_of_the_committed_figures(tmp_path: Path) -> None:
    figures = ROOT / "benchmarks" / "results" / "evaluation"
    results(ResultsOptions(results=str(figures), report=str(tmp_path / "RESULTS.md")))
    report = (ROOT / "docs" / "RESULTS.md").read_text()
    assert (tmp_path / "RESULTS.md").read_text() == report
    for picture in (tmp_path / "results").iterdir():
        assert f"results/{picture.name}" in report
        assert (ROOT / "docs" / "results" / picture.name).is_file()


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
