"""The audit through real Ray: a table of explanations, errors, and the report."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import SIDE, picture, tiny_model, tiny_shards

from devil.audit import (
    AuditConfig,
    Auditor,
    explanations_table,
    table_explanations,
)
from devil.audit_parts import Part, count, finished_parts
from devil.config import DecodingConfig
from devil.data.pictures import PIXEL_BYTES, Failure, Picture, Unit, list_units, pictures
from devil.errors import ConfigError, DataError, LayerError, LockError, QueryError
from devil.images import open_image
from devil.lock import Lock
from devil.model import DeViL
from pipelines.audit import LOCK, PLAN, RUN, AuditOptions, _known_pictures, audit, audited
from pipelines.pool import PoolConfig
from pipelines.runs import claim_run

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
    root = tmp_path / "photos"
    for seed, name in enumerate(("a/1.png", "b/1.png", "1.png", "1.webp")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(CAPTION, seed=seed).save(root / name, lossless=True)
    (root / "broken.jpg").write_text("not a picture")
    (root / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    page = audit(options(model_folder, tmp_path))
    html = page.read_text()
    assert "2 pictures could not be read" in html
    table = pq.read_table(tmp_path / "report" / "part-00000.parquet")
    found = {e.source: e for e in table_explanations(table)}
    assert sorted(found) == ["1.png", "1.webp", "a/1.png", "b/1.png"]
    errors = pq.read_table(tmp_path / "report" / "errors" / "part-00000.parquet").to_pylist()
    assert [(row["key"], row["stage"]) for row in errors] == [
        ("broken.jpg", "decode"),
        ("dangling.jpg", "read"),
    ]
    assert errors[1]["error"] == "FileNotFoundError"
    assert errors[1]["source"] == str(root / "dangling.jpg")
    model = DeViL.from_pretrained(model_folder)
    for key, explanation in found.items():
        direct = model.explain(
            root / key, queries=("red", "circle"), decoding=DecodingConfig(max_new_tokens=5)
        )
        for layer, ours in explanation.layers.items():
            theirs = direct.layers[layer]
            assert ours.caption is not None and theirs.caption is not None
            assert ours.caption.text == theirs.caption.text
            for query, grid in ours.saliency.items():
                assert grid == pytest.approx(theirs.saliency[query], abs=1e-4)
        assert key in html
    reasons = {"decode ImageError": 1, "read FileNotFoundError": 1}
    (part,) = finished_parts(str(tmp_path / "report")).values()
    assert sorted(part.files) == sorted([*found, "broken.jpg", "dangling.jpg"])
    assert part[1:4] == (4, 2, reasons)
    lengths = [(root / name).stat().st_size if (root / name).exists() else 0 for name in part.files]
    assert list(part.sizes) == lengths
    assert json.loads((tmp_path / "report" / PLAN).read_text()) == {"pictures": 6, "units": 1}
    shown = list(audited(options(model_folder, tmp_path)))
    assert sorted(e.source or "" for e in shown) == sorted(found)
    for explanation in shown:
        assert explanation == found[explanation.source]
        opened = open_image(root / str(explanation.source))
        assert np.array_equal(np.asarray(explanation.image), np.asarray(opened))


def test_a_file_that_was_half_copied_is_read_again_when_it_is_whole(
    model_folder: Path, tmp_path: Path
) -> None:
    photos(tmp_path, 2)
    late = tmp_path / "photos" / "1.png"
    whole = late.read_bytes()
    late.write_bytes(whole[: len(whole) // 2])
    request = options(model_folder, tmp_path)
    assert "1 pictures could not be read" in audit(request).read_text()
    late.write_bytes(whole)
    assert "2 pictures are explained, 0 pictures could not be read" in audit(request).read_text()
    part = tmp_path / "report" / "part-00000.parquet"
    before = part.stat().st_mtime_ns
    audit(request)
    assert part.stat().st_mtime_ns == before


def test_parts_know_their_files_by_name_and_size() -> None:
    part = Part(("a", "b"), 2, 0, {}, (5, None))
    assert part.holds(("a", "b"), (5, 9)) and part.holds(("b",), (3,)) and part.holds(("a",), ())
    assert not part.holds(("a", "b"), (6, 9)) and not part.holds(("a", "c"), (5, 1))
    assert Part(("a",), 1, 0, {}).holds(("a",), (7,))  # of an earlier version


def test_the_same_command_counts_old_errors_and_explains_what_is_new(
    model_folder: Path, tmp_path: Path
) -> None:
    photos(tmp_path, 2)
    (tmp_path / "photos" / "broken.jpg").write_text("not a picture")
    request = options(model_folder, tmp_path)
    audit(request)
    part = tmp_path / "report" / "part-00000.parquet"
    before = part.stat().st_mtime_ns
    assert "1 pictures could not be read" in audit(request).read_text()
    picture(CAPTION, seed=5).save(tmp_path / "photos" / "0-added.png")
    (tmp_path / "photos" / "1.png").unlink()
    html = audit(request).read_text()
    assert part.stat().st_mtime_ns == before
    assert [e.source for e in audited(request)] == ["0.png", "0-added.png"]
    assert "1 pictures could not be read" in html
    assert "1 files of an earlier run are gone" in html and "1.png" in html
    parts = finished_parts(str(tmp_path / "report"))
    assert {name: p.files for name, p in parts.items()} == {
        "00000": ("0.png", "1.png", "broken.jpg"),
        "00001": ("0-added.png",),
    }


def test_counts_are_sums_over_parts() -> None:
    parts = [
        Part(("a", "b"), 1, 1, {"read E": 1}),
        Part(("c",), 0, 3, {"decode E": 2, "read E": 1}),
    ]
    assert count(parts) == (1, 4, {"read E": 2, "decode E": 2})
    assert count([]) == (0, 0, {})


def test_pictures_outside_of_the_folder_are_errors_and_paths_stay_short(
    model_folder: Path, tmp_path: Path
) -> None:
    photos(tmp_path, 2)
    root = tmp_path / "photos"
    picture(CAPTION).save(tmp_path / "secret.png")
    (root / "inner.png").symlink_to(root / "1.png")
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "nowhere.png").symlink_to(root / "missing.png")
    request = options(model_folder, tmp_path, inside=str(root), whole_paths=False)
    page = audit(request).read_text()
    assert "3 pictures are explained, 2 pictures could not be read" in page
    table = pq.read_table(tmp_path / "report" / "part-00000.parquet").to_pylist()
    assert {row["source"] for row in table} == {"0.png", "1.png", "inner.png"}
    errors = pq.read_table(tmp_path / "report" / "errors" / "part-00000.parquet").to_pylist()
    found = {row["key"]: row for row in errors}
    assert "leads out" in found["out.png"]["message"]
    assert found["nowhere.png"]["error"] == "FileNotFoundError"
    assert str(tmp_path) not in str(errors) and str(tmp_path) not in page
    assert [e.source for e in audited(request)] == ["0.png", "1.png", "inner.png"]
    with pytest.raises(ConfigError, match="another whole_paths"):
        audit(options(model_folder, tmp_path))


def test_shards_that_say_how_much_they_hold_are_counted_before(
    model_folder: Path, tmp_path: Path
) -> None:
    shards = tiny_shards(tmp_path / "photos", shards=2, rows=2)
    brief = AuditConfig(dense=False, layers=("all",))
    request = options(model_folder, tmp_path, audit=brief)
    audit(request)
    plan = tmp_path / "report" / PLAN
    assert json.loads(plan.read_text()) == {"pictures": 4, "units": 2}
    (tmp_path / "report" / "part-00001.parquet").unlink()
    Path(shards[1].replace(".tar", "_stats.json")).unlink()
    audit(request)
    assert json.loads(plan.read_text()) == {"pictures": None, "units": 2}


def test_table_round_trip_is_exact(model_folder: Path, tmp_path: Path) -> None:
    model = DeViL.from_pretrained(model_folder)
    picture(CAPTION).save(tmp_path / "one.png")
    explanation = model.explain(tmp_path / "one.png", queries=["red"])
    assert list(table_explanations(explanations_table([explanation]))) == [explanation]


def test_pictures_of_equal_keys_are_told_apart(model_folder: Path, tmp_path: Path) -> None:
    model = DeViL.from_pretrained(model_folder)
    twins = []
    for seed in range(4):
        picture(CAPTION, seed=seed).save(tmp_path / "one.png")
        twins.append(model.explain(tmp_path / "one.png", queries=["red"]))
    of_a, of_b = (explanations_table(twins[:2], "aa"), explanations_table(twins[2:], "bb"))
    assert list(table_explanations(pa.concat_tables([of_a, of_b]))) == twins


def test_a_part_of_other_files_is_not_taken_for_this_one(
    model_folder: Path, tmp_path: Path
) -> None:
    photos(tmp_path, 2)
    (tmp_path / "errors").mkdir()
    model = DeViL.from_pretrained(model_folder)
    config = AuditConfig(dense=False, layers=("all",))
    auditor = Auditor(model, str(tmp_path), config, DecodingConfig(max_new_tokens=2))
    (unit,) = list_units(str(tmp_path / "photos"))
    first = Unit(unit.name, unit.paths[:1], unit.files[:1], unit.sizes[:1])
    assert [auditor(u)["skipped"] for u in (first, first, unit, unit)] == [False, True] * 2
    (tmp_path / "part-00000.parquet").write_text("no table")
    with pytest.raises(DataError, match=r"part-00000\.parquet is corrupt"):
        finished_parts(str(tmp_path))


def test_requests_that_cannot_work_are_refused_before_any_picture(
    model_folder: Path, tmp_path: Path
) -> None:
    photos(tmp_path, 1)
    with pytest.raises(LayerError, match="not trained for"):
        audit(options(model_folder, tmp_path, audit=AuditConfig(layers=("layer9",))))
    with pytest.raises(QueryError, match="no tokens"):
        audit(options(model_folder, tmp_path, audit=AuditConfig(queries=(" ",))))
    with pytest.raises(QueryError, match="at least two queries"):
        lonely = AuditConfig(queries=("red",), calibration="contrast")
        audit(options(model_folder, tmp_path, audit=lonely))
    with pytest.raises(ConfigError, match="smoothing kernel is 2"):
        audit(options(model_folder, tmp_path, audit=AuditConfig(dense=False, smoothing=2)))
    with pytest.raises(ConfigError, match="max_new_tokens is 5000"):
        endless = DecodingConfig(max_new_tokens=5000)
        audit(options(model_folder, tmp_path, decoding=endless))
    with pytest.raises(DataError, match="no pictures"):
        audit(options(model_folder, tmp_path, images=str(tmp_path / "nowhere")))
    assert not (tmp_path / "report").exists()
    (tmp_path / "report").mkdir()
    claim_run(tmp_path / "report" / RUN, {"audit": "of something else"})
    with pytest.raises(ConfigError, match="another audit"):
        audit(options(model_folder, tmp_path, audit=AuditConfig(queries=("star",))))


def test_two_audits_into_one_folder_are_kept_apart(model_folder: Path, tmp_path: Path) -> None:
    photos(tmp_path, 1)
    with Lock(tmp_path / "report" / LOCK), pytest.raises(LockError, match="is held by"):
        audit(options(model_folder, tmp_path))
    assert not (tmp_path / "report" / RUN).exists()


def test_units_of_a_folder_and_of_shards(tmp_path: Path) -> None:
    photos(tmp_path, 5)
    units = list_units(str(tmp_path / "photos"), files_per_unit=2)
    assert [len(unit.paths) for unit in units] == [2, 2, 1]
    assert len({unit.name for unit in units}) == 3
    units = list_units(str(tmp_path / "photos"), files_per_unit=2, done={"00001": ("1.png", "x")})
    assert {u.name: u.files for u in units} == {
        "00001": ("1.png",),
        "00000": ("0.png", "2.png"),
        "00002": ("3.png", "4.png"),
    }
    deep = tmp_path / "shards" / "may"
    deep.mkdir(parents=True)
    (deep / "a (1).tar").touch()
    (unit,) = list_units(str(tmp_path / "shards"))
    assert unit.name == "a (1)" and unit.files == ("may/a (1).tar",)
    (tmp_path / "photos" / "backup.tar").touch()
    with pytest.raises(DataError, match=r"holds shards .*backup.tar.* and pictures"):
        list_units(str(tmp_path / "photos"))  # none is left out without a word


@pytest.mark.parametrize(
    ("asked", "files"),
    [
        ("photos", ["0.png", "deep/0.png", "link.png"]),
        ("photos/", ["0.png", "deep/0.png", "link.png"]),
        ("photos/*.png", ["0.png", "link.png"]),
        ("photos/*/0.png", ["deep/0.png"]),
        ("*/deep/?.png", ["photos/deep/0.png"]),
        ("photos/deep/0.png", ["0.png"]),
        ("with [marks]", ["0.png"]),
    ],
)
def test_keys_are_paths_below_the_folder_asked_for(
    asked: str, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path, 1)
    for folder in ("photos/deep", "with [marks]"):
        (tmp_path / folder).mkdir()
        picture(CAPTION).save(tmp_path / folder / "0.png")
    (tmp_path / "photos" / "folder.png").mkdir()
    (tmp_path / "photos" / "link.png").symlink_to(tmp_path / "photos" / "0.png")
    (tmp_path / "photos" / "linked-folder.png").symlink_to(tmp_path / "photos" / "deep")
    monkeypatch.chdir(tmp_path)
    for address in (asked, f"{tmp_path}/{asked}", f"file://{tmp_path}/{asked}"):
        units = list_units(address)
        assert [file for unit in units for file in unit.files] == files
        found = [p for unit in units for p in pictures(unit)]
        assert [p.key for p in found if isinstance(p, Picture)] == files


def test_shards_of_one_name_are_refused_and_damage_keeps_its_place(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with tarfile.open(tmp_path / folder / "0.tar", "w") as tar:
            buffer = io.BytesIO()
            picture(CAPTION).save(buffer, "PNG")
            member = tarfile.TarInfo("x.png")
            member.size = buffer.tell()
            tar.addfile(member, io.BytesIO(buffer.getvalue()))
    with pytest.raises(DataError, match=r"several shards are named \['0'\]"):
        list_units(str(tmp_path / "*" / "0.tar"))
    whole = (tmp_path / "b" / "0.tar").read_bytes()
    (tmp_path / "b" / "0.tar").write_bytes(whole[:-10_000])
    (unit,) = list_units(str(tmp_path / "b"))
    assert (unit.name, unit.files) == ("0", ("0.tar",))
    found = list(pictures(unit))
    assert isinstance(found[-1], Failure) and found[-1].stage == "read"


def test_statistics_of_a_shard_are_read_inside_of_the_folder_alone(tmp_path: Path) -> None:
    (path,) = tiny_shards(tmp_path / "photos", shards=1, rows=2)
    statistics = Path(path.replace(".tar", "_stats.json"))
    statistics.unlink()
    (tmp_path / "secret.json").write_text('{"successes": 5}')
    statistics.symlink_to(tmp_path / "secret.json")
    (unit,) = list_units(str(tmp_path / "photos"))
    *_, last = pictures(unit)
    assert isinstance(last, Failure) and "says 5" in last.message
    found = list(pictures(unit, inside=str(tmp_path / "photos")))
    assert [type(entry) for entry in found] == [Picture, Picture]
    assert _known_pictures([unit], {}, inside=None) == 5
    assert _known_pictures([unit], {}, inside=str(tmp_path / "photos")) is None


def test_files_that_are_too_long_for_a_picture_are_not_read(tmp_path: Path) -> None:
    photos(tmp_path, 2)
    most = PIXEL_BYTES * SIDE**2
    for name, length in (("0.png", most), ("1.png", most + 1)):
        os.truncate(tmp_path / "photos" / name, length)
    (unit,) = list_units(str(tmp_path / "photos"))
    read, refused = pictures(unit, max_pixels=SIDE**2)
    assert isinstance(read, Picture)
    assert isinstance(refused, Failure) and refused.stage == "decode", refused
    assert f"too long, {most + 1:,} bytes" in refused.message


def test_pictures_of_too_many_pixels_are_errors(tmp_path: Path) -> None:
    photos(tmp_path, 1)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(tmp_path / "photos" / "0.png", "0.png")
    for place in ("photos", "shard.tar"):
        (unit,) = list_units(str(tmp_path / place))
        (found,) = pictures(unit, max_pixels=SIDE**2)
        assert isinstance(found, Picture)
        (found,) = pictures(unit, max_pixels=SIDE**2 - 1)
        assert isinstance(found, Failure) and found.stage == "decode", found
        assert "pixels" in found.message
