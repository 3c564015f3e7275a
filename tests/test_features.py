"""The feature store: schema, manifest, whole or no parts, any file system."""

import dataclasses
import errno
import io
import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from devil.config import BackboneConfig, ExtractionConfig
from devil.data.sample import Failure
from devil.errors import DataError, FeatureStoreError, StorageError
from devil.features import FeatureStore, PartMetadata, column_of, tensor_column
from devil.manifest import Manifest
from devil.part_writer import PartWriter
from devil.types import LayerShape

LAYERS = {"blocks.1": LayerShape(6, 2, 3), "blocks.2": LayerShape(4, 1, 1)}


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = dict(
        backbone=BackboneConfig(name="timm:test_vit"),
        backbone_digest="abc",
        transform={"crop": [64, 64]},
        layers=LAYERS,
        class_tokens=True,
        extraction=ExtractionConfig(draws=2),
    )
    return Manifest(**{**values, **changes})


def columns(rows: int, store: FeatureStore, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    result: dict[str, Any] = {
        "key": [f"k{i}" for i in range(rows)],
        "captions": [[f"caption {i}", "☃"] for i in range(rows)],
        "width": [64] * rows,
        "height": [48] * rows,
    }
    for entry in store.row_schema():
        if entry.name not in result:
            shape = (rows, *entry.type.shape)
            result[entry.name] = rng.normal(size=shape).astype(np.float32)
    return result


def write(store: FeatureStore, name: str, rows: int = 3, seed: int = 0) -> dict[str, Any]:
    values = columns(rows, store, seed)
    with PartWriter(store, name) as writer:
        if rows:
            writer.add(values)
        writer.fail(Failure.of("bad", "x.tar", "decode", DataError("why")))
        writer.commit(PartMetadata("x.tar", 10, rows, 1, 0.5))
    return values


@pytest.mark.parametrize("root", ["local", "memory"])
@pytest.mark.parametrize("mode", ["pooled", "maps"])
def test_round_trip(root: str, mode: str, tmp_path: Path) -> None:
    address = str(tmp_path / "store") if root == "local" else f"memory://round-trip-{mode}"
    extraction = ExtractionConfig(draws=2, mode=mode)  # type: ignore[arg-type]
    store = FeatureStore.create(address, manifest(extraction=extraction))
    values = write(store, "00000")
    again = FeatureStore.open(address + "/")
    assert again.manifest == store.manifest
    (part,) = again.parts()
    assert again.metadata(part) == PartMetadata("x.tar", 10, 3, 1, 0.5)
    table = again.read(part)
    assert table.column("key").to_pylist() == values["key"]
    assert table.column("captions").to_pylist() == values["captions"]
    for name in ("feature.blocks.1", "feature.blocks.2", "class_token.blocks.1"):
        assert np.array_equal(tensor_column(table, name), values[name].astype(np.float16))
    assert again.errors().to_pylist() == [
        {"key": "bad", "source": "x.tar", "stage": "decode", "error": "DataError", "message": "why"}
    ]


def test_plain_pyarrow_sees_fixed_shape_tensors(tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path), manifest())
    write(store, "00000")
    schema = pq.read_schema(tmp_path / "part-00000.parquet")
    expected = {
        "feature.blocks.1": (3, 6),
        "feature.blocks.2": (3, 4),
        "class_token.blocks.1": (6,),
        "class_token.blocks.2": (4,),
    }
    assert [f.name for f in schema] == [
        *("key", "captions", "width", "height"),
        *("feature.blocks.1", "class_token.blocks.1", "feature.blocks.2", "class_token.blocks.2"),
    ]
    for name, shape in expected.items():
        kind = schema.field(name).type
        assert isinstance(kind, pa.FixedShapeTensorType)
        assert (tuple(kind.shape), kind.value_type) == (shape, pa.float16())
    assert schema.field("captions").type == pa.list_(pa.string())


def test_maps_keep_their_axes(tmp_path: Path) -> None:
    extraction = ExtractionConfig(mode="maps")
    store = FeatureStore.create(str(tmp_path), manifest(extraction=extraction))
    values = write(store, "00000")
    table = store.read(store.parts()[0], ["feature.blocks.1"])
    assert table.column_names == ["feature.blocks.1"]
    stored = tensor_column(table, "feature.blocks.1")
    assert stored.shape == (3, 6, 2, 3)
    assert stored[2, 5, 1, 2] == values["feature.blocks.1"][2, 5, 1, 2].astype(np.float16)


def test_many_rows_in_several_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devil.part_writer.GROUP_BYTES", 2_000)
    store = FeatureStore.create(str(tmp_path), manifest())
    values = write(store, "00000", rows=100)
    part = store.parts()[0]
    assert 3 < pq.ParquetFile(part).num_row_groups < 100
    stored = tensor_column(store.read(part), "feature.blocks.1")
    assert np.array_equal(stored, values["feature.blocks.1"].astype(np.float16))


def test_no_rows(tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path), manifest())
    write(store, "00000", rows=0)
    table = store.read(store.parts()[0])
    assert table.num_rows == 0
    assert tensor_column(table, "feature.blocks.1").shape == (0, 3, 6)


class SmallFile(io.FileIO):
    """A file on a disk that has room for its first 1,000 bytes."""

    def write(self, content: Any) -> int:
        if self.tell() + len(content) > 1_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content)


class SmallDisk(LocalFileSystem):
    """A disk that is nearly full."""

    protocol = "small"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return SmallFile(path, mode) if "w" in mode else super()._open(path, mode, **options)


@pytest.mark.parametrize("rows", [3, 400])
def test_a_part_appears_whole_or_not_at_all(rows: int, tmp_path: Path) -> None:
    """The disk is full at the end, or after row groups were written."""
    store = FeatureStore.create(str(tmp_path), manifest())
    write(store, "00000")
    before = {p.name for p in tmp_path.rglob("*")}
    store.fs = SmallDisk()
    with pytest.raises(StorageError, match=r"no room left at .*make some and start again"):
        write(store, "00001", rows=rows)
    assert {p.name for p in tmp_path.rglob("*")} - before <= {"part-00001.parquet"}
    assert len(store.parts()) == 1  # the other one is its errors
    store.fs = LocalFileSystem()
    write(store, "00001")
    assert len(store.parts()) == 2


def test_what_was_not_committed_leaves_nothing(tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path), manifest())
    with pytest.raises(KeyError), PartWriter(store, "00000") as writer:
        writer.add(columns(20_000, store))
        assert list(tmp_path.glob(".part-*.tmp"))
        raise KeyError
    assert not list(tmp_path.rglob("*part*"))


def test_parts_and_what_broke_off_are_removed_by_name(tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path), manifest())
    for name in ("00000", "00001"):
        write(store, name)
        (tmp_path / f".part-{name}.parquet.0123abcd.tmp").touch()
    store.remove_unfinished({"00001"})
    assert [p.name for p in tmp_path.glob(".part*")] == [".part-00000.parquet.0123abcd.tmp"]
    store.remove({"00000"})
    assert store.part_names() == {"00001"}
    assert store.errors().num_rows == 1
    assert (tmp_path / "manifest.json").exists()


def test_going_on_needs_the_same_configuration(tmp_path: Path) -> None:
    FeatureStore.create(str(tmp_path), manifest())
    FeatureStore.create(str(tmp_path), manifest())
    moved = manifest(
        backbone=BackboneConfig(name="timm:test_vit", weights="elsewhere.safetensors"),
        extraction=ExtractionConfig(draws=2, batch_size=7),
        versions={"torch": "0"},
    )
    FeatureStore.create(str(tmp_path), moved)  # rows would be the same
    others = {
        "backbone_digest: 'abc' here, 'def' asked": manifest(backbone_digest="def"),
        "extraction.draws: 2 here, 5": manifest(extraction=ExtractionConfig(draws=5)),
        "extraction.seed": manifest(extraction=ExtractionConfig(draws=2, seed=1)),
        "extraction.max_pixels": manifest(extraction=ExtractionConfig(draws=2, max_pixels=9)),
        "extraction.mode": manifest(extraction=ExtractionConfig(draws=2, mode="maps")),
        "extraction.feature_dropout": manifest(
            extraction=ExtractionConfig(draws=2, feature_dropout=0.1)
        ),
        "transform": manifest(transform={"crop": [32, 32]}),
        "layers": manifest(layers={"blocks.1": LAYERS["blocks.1"]}),
        "class_tokens": manifest(class_tokens=False),
        "backbone name": manifest(backbone=BackboneConfig(name="timm:other")),
    }
    for message, other in others.items():
        with pytest.raises(FeatureStoreError, match=f"another configuration: {message}"):
            FeatureStore.create(str(tmp_path), other)


def test_stores_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FeatureStoreError, match=r"manifest\.json is missing"):
        FeatureStore.open(str(tmp_path / "nothing"))
    FeatureStore.create(str(tmp_path), manifest())
    path = tmp_path / "manifest.json"
    good = json.loads(path.read_text())
    for text, message in {
        "{": "corrupt",
        "": "corrupt",
        "[]": "format version None",
        json.dumps({**good, "format_version": 9}): "format version 9",
        json.dumps({**good, "colour": 1}): "is no manifest",
        json.dumps({k: v for k, v in good.items() if k != "layers"}): "is no manifest",
        json.dumps({**good, "layers": {"a": [1]}}): "is no manifest",
        json.dumps({**good, "extraction": {"draws": -1}}): "draws is -1",
    }.items():
        path.write_text(text)
        with pytest.raises(FeatureStoreError, match=message):
            FeatureStore.open(str(tmp_path))


@pytest.mark.parametrize("kept", [0, 3, 200, -1])
def test_corrupt_parts(kept: int, tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path), manifest())
    write(store, "00000")
    part = tmp_path / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:kept])
    with pytest.raises(FeatureStoreError, match="no whole part"):
        store.metadata(str(part))
    with pytest.raises(FeatureStoreError, match="no whole part"):
        store.read(str(part))


def test_a_part_with_a_broken_page(tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path), manifest())
    write(store, "00000")
    part = tmp_path / "part-00000.parquet"
    column = pq.read_metadata(part).row_group(0).column(0)
    begin, size = column.data_page_offset, column.total_compressed_size
    begin = min(begin, column.dictionary_page_offset or begin)
    content = part.read_bytes()
    part.write_bytes(content[:begin] + b"\xff" * size + content[begin + size :])
    with pytest.raises(FeatureStoreError, match="no whole part"):
        store.keys(str(part))


class ClosedFile(io.FileIO):
    """A file in a bucket that refuses, as `error` says."""

    error: Exception

    def read(self, size: int | None = -1) -> Any:
        raise self.error


class ClosedBucket(LocalFileSystem):
    """A bucket that refuses when a file is opened, or when it is read."""

    protocol = "closed"

    def __init__(self, error: Exception, at: str) -> None:
        super().__init__()
        self.error, self.at = error, at

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if self.at == "open":
            raise self.error
        file = ClosedFile(path)
        file.error = self.error
        return file


@pytest.mark.parametrize("at", ["open", "read"])
@pytest.mark.parametrize(
    "error", [OSError("Forbidden: part"), ValueError("Bad Request: part"), TimeoutError("part")]
)
def test_parts_out_of_reach_are_not_corrupt(error: Exception, at: str, tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path), manifest())
    write(store, "00000")
    (part,) = store.parts()
    store.fs = ClosedBucket(error, at)
    for ask in (store.metadata, store.read):
        with pytest.raises(StorageError, match=rf"00000\.parquet cannot be used .*{error}"):
            ask(part)


def test_another_parquet_file_is_no_part(tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path), manifest())
    pq.write_table(pa.table({"x": [1]}), tmp_path / "part-x.parquet")
    with pytest.raises(FeatureStoreError, match="no whole part"):
        store.metadata(store.parts()[0])


def test_slots_and_columns() -> None:
    both, plain = manifest(), manifest(class_tokens=False)
    assert plain.slots() == ("blocks.1", "blocks.2")
    assert both.slots() == ("blocks.1", "blocks.2", "blocks.1.class", "blocks.2.class")
    names = [column_of(slot, list(LAYERS)) for slot in both.slots()]
    assert names == [
        *("feature.blocks.1", "feature.blocks.2"),
        *("class_token.blocks.1", "class_token.blocks.2"),
    ]


def test_manifest_can_be_replaced(tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path), manifest())
    store.write_manifest(dataclasses.replace(store.manifest, rows=7, errors=2))
    again = FeatureStore.open(str(tmp_path)).manifest
    assert (again.rows, again.errors) == (7, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["errors", "manifest.json"]


def test_memory_store_leaves_no_temporary_files() -> None:
    store = FeatureStore.create("memory://clean", manifest())
    write(store, "00000")
    names = fsspec.filesystem("memory").find("/clean")
    assert not [name for name in names if name.endswith(".tmp")]


@pytest.mark.parametrize("root", ["local", "memory"])
def test_marks_in_names_are_no_pattern(root: str, tmp_path: Path) -> None:
    address = str(tmp_path / "a[bc]*?") if root == "local" else "memory://a[bc]*?"
    store = FeatureStore.create(address, manifest())
    name = "photos [1].parquet.x"
    write(store, name)
    assert store.part_names() == {name} and store.errors().num_rows == 1
    assert not [path for path in store.fs.find(store.path) if path.endswith(".tmp")]
    store.remove({name})
    assert not store.parts() and not store.errors().num_rows


def test_a_part_that_is_gone(tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path), manifest())
    with pytest.raises(FeatureStoreError, match=r"part-x\.parquet is not there .*extract again"):
        store.read(store.part_path("x"))
