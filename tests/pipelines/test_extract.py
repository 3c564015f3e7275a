"""Extraction through real Ray: restart, errors, and what is refused."""

import dataclasses
import json
import re
from pathlib import Path
from typing import NoReturn

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tiny import encoded, picture, sample_members, tiny_backbone_weights, tiny_shards, write_tar

from devil.backbones import load_backbone
from devil.config import ExtractionConfig
from devil.errors import (
    BackboneError,
    ConfigError,
    DataError,
    FeatureStoreError,
    LayerError,
    LockError,
    StorageError,
)
from devil.features import FeatureStore
from devil.lock import Lock
from devil.manifest import Manifest
from pipelines.extract import ExtractionWorker, ExtractOptions, extract
from pipelines.pool import PoolConfig

CAPTION = "a red circle on the left side"


def options(folder: Path, **changes: object) -> ExtractOptions:
    values: dict[str, object] = {
        "shards": str(folder / "shards"),
        "store": str(folder / "store"),
        "backbone": tiny_backbone_weights(folder / "backbone"),
        "extraction": ExtractionConfig(draws=2, batch_size=4),
        "pool": PoolConfig(workers=2, cpus_per_worker=1),
    }
    return ExtractOptions(**(values | changes))  # type: ignore[arg-type]


def test_every_row_is_stored_or_explained_and_a_second_run_only_adds(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "shards", shards=2, rows=5)
    broken = [
        *sample_members("good", [CAPTION], encoded(picture("a red circle on the left side"))),
        *sample_members("text", [CAPTION], b"this is no picture"),
    ]
    write_tar(tmp_path / "shards" / "00007.tar", broken)
    manifest = extract(options(tmp_path))
    assert (manifest.rows, manifest.errors) == (11, 1)
    store = FeatureStore.open(str(tmp_path / "store"))
    assert store.errors().to_pylist()[0]["key"] == "text"
    assert store.errors().to_pylist()[0]["stage"] == "decode"
    before = {part: Path(part).stat().st_mtime_ns for part in store.parts()}
    tiny_shards(tmp_path / "more", shards=1, rows=3, seed=5)
    (tmp_path / "more" / "00000.tar").rename(tmp_path / "shards" / "00009.tar")
    again = extract(options(tmp_path))
    assert again.rows == 14
    after = {part: Path(part).stat().st_mtime_ns for part in store.parts()}
    assert before.items() < after.items()
    assert not list((tmp_path / "store").rglob("*.tmp"))


def test_draws_do_not_depend_on_workers_or_batches(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "shards", shards=2, rows=5)
    extract(options(tmp_path))
    extract(
        options(
            tmp_path,
            store=str(tmp_path / "other"),
            extraction=ExtractionConfig(draws=2, batch_size=3),
            pool=PoolConfig(workers=1, cpus_per_worker=1),
        )
    )
    for part in sorted((tmp_path / "store").glob("part-*.parquet")):
        one, two = pq.read_table(part), pq.read_table(tmp_path / "other" / part.name)
        for name in one.column_names:
            if name.startswith("feature."):
                a = one.column(name).combine_chunks().to_numpy_ndarray().astype("float32")
                b = two.column(name).combine_chunks().to_numpy_ndarray().astype("float32")
                assert abs(a - b).max() <= 2e-3 * abs(a).max()
            else:
                assert one.column(name).equals(two.column(name))


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shards at"):
        extract(options(tmp_path))
    tiny_shards(tmp_path / "shards", shards=1, rows=2)
    backbone = tiny_backbone_weights(tmp_path / "backbone")
    with pytest.raises(LayerError, match=r"no layer .*layer9.*layer1"):
        extract(
            options(tmp_path, backbone=type(backbone)(**vars(backbone) | {"layers": ("layer9",)}))
        )
    assert not (tmp_path / "store").exists()


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "shards", shards=1, rows=2)
    extract(options(tmp_path))
    manifest = (tmp_path / "store" / "manifest.json").read_bytes()
    with pytest.raises(FeatureStoreError, match=r"extraction\.draws: 2 here, 3 asked"):
        extract(options(tmp_path, extraction=ExtractionConfig(draws=3)))
    assert (tmp_path / "store" / "manifest.json").read_bytes() == manifest
    assert json.loads(manifest)["rows"] == 2


def test_the_first_shards_alone(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "shards", shards=3, rows=2)
    assert extract(options(tmp_path, limit=1)).rows == 2
    store = FeatureStore.open(str(tmp_path / "store"))
    assert store.part_names() == {"00000"}
    assert extract(options(tmp_path)).rows == 6
    with pytest.raises(ConfigError, match="limit is 0"):
        extract(options(tmp_path, limit=0))


def test_a_dry_run_says_what_is_left_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_shards(tmp_path / "shards", shards=3, rows=9)
    caplog.set_level("INFO", "extract")
    extract(options(tmp_path, dry_run=True))
    assert not (tmp_path / "store").exists()
    assert "3 shards, 0 of them finished" in caplog.text
    assert "left: 27 rows" in caplog.text
    extract(options(tmp_path, limit=1))
    before = sorted((tmp_path / "store").rglob("*"))
    caplog.clear()
    extract(options(tmp_path, dry_run=True))
    assert "3 shards, 1 of them finished" in caplog.text and "left: 18 rows" in caplog.text
    assert "rows/s of one worker, measured here" in caplog.text
    assert sorted((tmp_path / "store").rglob("*")) == before


def test_overwriting_makes_parts_again_and_empties_another_configurations_store(
    tmp_path: Path,
) -> None:
    tiny_shards(tmp_path / "shards", shards=2, rows=2)
    extract(options(tmp_path))
    parts = list((tmp_path / "store").glob("part-*"))
    before = {part: part.stat().st_mtime_ns for part in parts}
    extract(options(tmp_path, overwrite=True))
    assert all(part.stat().st_mtime_ns > before[part] for part in parts)
    other = ExtractionConfig(draws=1)
    assert extract(options(tmp_path, overwrite=True, limit=1, extraction=other)).rows == 2
    store = FeatureStore.open(str(tmp_path / "store"))
    assert store.part_names() == {"00000"} and store.manifest.extraction == other


def test_a_bucket_out_of_reach_is_told_and_nothing_is_made(tmp_path: Path) -> None:
    class Unreachable(MemoryFileSystem):
        protocol = "unreachable"

        def _open(self, path: str, mode: str = "rb", **options: object) -> NoReturn:
            raise ConnectionError("no route to host")

        def exists(self, path: str, **options: object) -> NoReturn:
            raise ConnectionError("no route to host")

        ls = info = exists

    fsspec.register_implementation("unreachable", Unreachable, clobber=True)
    with pytest.raises(StorageError, match=r"bucket/shards cannot be used .*no route"):
        extract(options(tmp_path, shards="unreachable://bucket/shards"))
    tiny_shards(tmp_path / "shards", shards=1, rows=2)
    with pytest.raises(StorageError, match="unreachable://bucket/store cannot be used"):
        extract(options(tmp_path, store="unreachable://bucket/store"))


def test_a_dry_run_is_not_misled_by_an_empty_shard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_shards(tmp_path / "shards", shards=3, rows=9)
    (tmp_path / "shards" / "00000.tar").write_bytes(b"")
    caplog.set_level("INFO", "extract")
    extract(options(tmp_path, dry_run=True))
    found = re.search(r"left: (\d+) rows", caplog.text)
    assert found and 16 <= int(found[1]) <= 20  # two shards of nine rows, judged by their bytes
    assert "rows/s of one worker, measured here" in caplog.text


def test_two_extractions_into_one_folder(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "shards", shards=1, rows=2)
    (tmp_path / "store").mkdir()
    with (
        Lock(tmp_path / "store" / "extract.lock"),
        pytest.raises(LockError, match=r"extract\.lock is held by process"),
    ):
        extract(options(tmp_path))
    assert not (tmp_path / "store" / "manifest.json").exists()
    assert extract(options(tmp_path)).rows == 2
    assert not (tmp_path / "store" / "extract.lock").exists()


def test_what_somebody_put_into_the_store_is_told_and_not_read(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "shards", shards=2, rows=2)
    extract(options(tmp_path, limit=1))
    planted = tmp_path / "store" / "part-00001.parquet"
    planted.write_bytes((tmp_path / "store" / "part-00000.parquet").read_bytes()[:-100])
    with pytest.raises(FeatureStoreError, match=r"part-00001\.parquet is no whole part.*remove it"):
        extract(options(tmp_path))
    planted.unlink()
    (tmp_path / "store" / ".part-00001.parquet.0badcafe.tmp").write_bytes(b"half a part")
    assert extract(options(tmp_path)).rows == 4
    assert not list((tmp_path / "store").rglob("*.tmp"))


def test_a_worker_with_other_weights_writes_nothing(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "shards", shards=1, rows=2)
    asked = options(tmp_path)
    loaded = load_backbone(asked.backbone)
    store = FeatureStore.create(asked.store, Manifest.of(loaded, asked.backbone, asked.extraction))
    same = (asked.shards, asked.source, asked.store, asked.backbone, asked.extraction, 1)
    ExtractionWorker(*same)
    store.write_manifest(dataclasses.replace(store.manifest, backbone_digest="other"))
    with pytest.raises(BackboneError, match=r"on this worker, .* is of other; give all machines"):
        ExtractionWorker(*same)


def test_a_run_that_breaks_off_leaves_no_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_shards(tmp_path / "shards", shards=1, rows=2)
    store = tmp_path / "store"

    class Failing(ExtractionWorker):
        """Leaves a file behind, as one that is killed does, and ends the run; travels by value."""

        def __call__(self, shard: str) -> NoReturn:
            (store / ".part-00000.parquet.0badcafe.tmp").write_bytes(b"half a part")
            raise StorageError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.extract.ExtractionWorker", Failing)
        with pytest.raises(StorageError, match="the network is gone"):
            extract(options(tmp_path, pool=PoolConfig(workers=1, cpus_per_worker=1)))
    assert not list(store.rglob("*.tmp"))
    assert extract(options(tmp_path)).rows == 2
