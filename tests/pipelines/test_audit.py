"""The audit through real Ray: a table of explanations, errors, and the report."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny import picture, tiny_model

from devil.audit import AuditConfig, explanations_table, list_units, table_explanations
from devil.config import DecodingConfig
from devil.errors import ConfigError, DataError, LayerError, QueryError
from devil.model import DeViL
from pipelines.audit import AuditOptions, audit
from pipelines.pool import PoolConfig

CAPTION = "a red circle on the left side"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(folder).save_pretrained(folder / "model")
    return folder / "model"


def options(model: Path, folder: Path, **changes: object) -> AuditOptions:
    values: dict[str, object] = {
        "model": str(model),
        "images": str(folder / "photos"),
        "output": str(folder / "report"),
        "audit": AuditConfig(queries=("red", "circle")),
        "decoding": DecodingConfig(max_new_tokens=5),
        "pool": PoolConfig(workers=1, cpus_per_worker=1),
    }
    return AuditOptions(**(values | changes))  # type: ignore[arg-type]


def photos(folder: Path, count: int) -> None:
    (folder / "photos").mkdir()
    for index in range(count):
        picture(CAPTION, seed=index).save(folder / "photos" / f"{index}.png")


def test_audit_equals_explain_and_accounts_for_every_picture(
    model_folder: Path, tmp_path: Path
) -> None:
    photos(tmp_path, 3)
    (tmp_path / "photos" / "broken.jpg").write_text("not a picture")
    page = audit(options(model_folder, tmp_path))
    html = page.read_text()
    table = pq.read_table(tmp_path / "report" / "part-00000.parquet")
    found = {e.source: e for e in table_explanations(table)}
    assert sorted(found) == ["0", "1", "2"]
    errors = pq.read_table(tmp_path / "report" / "errors" / "part-00000.parquet").to_pylist()
    assert [row["key"] for row in errors] == ["broken"]
    model = DeViL.from_pretrained(model_folder)
    for key, explanation in found.items():
        direct = model.explain(
            tmp_path / "photos" / f"{key}.png",
            queries=("red", "circle"),
            decoding=DecodingConfig(max_new_tokens=5),
        )
        for layer, ours in explanation.layers.items():
            theirs = direct.layers[layer]
            assert ours.caption is not None and theirs.caption is not None
            assert ours.caption.text == theirs.caption.text
            for query, grid in ours.saliency.items():
                assert grid == pytest.approx(theirs.saliency[query], abs=1e-4)
        assert key in html


def test_table_round_trip_is_exact(model_folder: Path, tmp_path: Path) -> None:
    model = DeViL.from_pretrained(model_folder)
    picture(CAPTION).save(tmp_path / "one.png")
    explanation = model.explain(tmp_path / "one.png", queries=["red"])
    assert list(table_explanations(explanations_table([explanation]))) == [explanation]


def test_requests_that_cannot_work_are_refused_before_any_picture(
    model_folder: Path, tmp_path: Path
) -> None:
    photos(tmp_path, 1)
    with pytest.raises(LayerError, match="not trained for"):
        audit(options(model_folder, tmp_path, audit=AuditConfig(layers=("layer9",))))
    with pytest.raises(QueryError, match="no tokens"):
        audit(options(model_folder, tmp_path, audit=AuditConfig(queries=(" ",))))
    with pytest.raises(DataError, match="no pictures"):
        audit(options(model_folder, tmp_path, images=str(tmp_path / "nowhere")))
    assert not (tmp_path / "report").exists()
    audit(options(model_folder, tmp_path))
    with pytest.raises(ConfigError, match="another audit"):
        audit(options(model_folder, tmp_path, audit=AuditConfig(queries=("star",))))


def test_units_of_a_folder_and_of_shards(tmp_path: Path) -> None:
    photos(tmp_path, 5)
    units = list_units(str(tmp_path / "photos"), files_per_unit=2)
    assert [len(unit.paths) for unit in units] == [2, 2, 1]
    assert len({unit.name for unit in units}) == 3
