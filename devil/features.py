"""The feature store: Parquet parts with one tensor column per layer, and a manifest.

``manifest.json``, ``part-<shard>.parquet`` (key, captions, width, height, per layer a fixed-shape
tensor) and ``errors/part-<shard>.parquet``. A part is written under a temporary name and
renamed last, so its presence says that the shard is done. Any fsspec address serves as folder.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple
from uuid import uuid4

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from devil.backbones.base import Backbone
from devil.config import BackboneConfig, ExtractionConfig, from_dict, to_dict
from devil.errors import ConfigError, FeatureStoreError
from devil.translator import class_slot
from devil.types import LayerShape

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
METADATA = b"devil"
BUFFER_BYTES = 64_000_000
"""Row groups are written when about this much has gathered."""

ERROR_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "source", "stage", "error", "message")]
)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store holds, and how it was made."""

    backbone: BackboneConfig
    backbone_digest: str
    transform: Mapping[str, Any]
    layers: Mapping[str, LayerShape]
    class_tokens: bool
    extraction: ExtractionConfig
    dtype: str = "float16"
    rows: int = 0
    errors: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(
        cls, backbone: Backbone, config: BackboneConfig, extraction: ExtractionConfig
    ) -> "Manifest":
        """The manifest of a store that `backbone` will fill."""
        return cls(
            backbone=config,
            backbone_digest=backbone.digest(),
            transform=json.loads(json.dumps(asdict(backbone.transform))),
            layers=backbone.shapes,
            class_tokens=backbone.has_class_token,
            extraction=extraction,
            versions=package_versions(),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values = dict(self.__dict__)
        values["backbone"] = to_dict(self.backbone)
        values["extraction"] = to_dict(self.extraction)
        values["layers"] = {name: list(shape) for name, shape in self.layers.items()}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> "Manifest":
        """Read back `to_dict`'s output.

        Raises:
            FeatureStoreError: another format version, or a key is missing or unknown.
        """
        found = values.get("format_version") if isinstance(values, Mapping) else None
        if found != FORMAT_VERSION:
            raise FeatureStoreError(
                f"{source} has format version {found!r}; this version of devil reads "
                f"{FORMAT_VERSION}."
            )
        try:
            known = dict(values)
            known["backbone"] = from_dict(BackboneConfig, known["backbone"])
            known["extraction"] = from_dict(ExtractionConfig, known["extraction"])
            known["layers"] = {n: LayerShape(*shape) for n, shape in known["layers"].items()}
            return cls(**known)
        except (KeyError, TypeError, AttributeError, ConfigError) as error:
            raise FeatureStoreError(f"{source} is no manifest: {error}.") from error

    def differences(self, other: "Manifest") -> list[str]:
        """What would make rows of the two incomparable, one line for each field."""
        mine, theirs = (_identity(m.to_dict()) for m in (self, other))
        return [
            f"{name}: {mine.get(name)!r} here, {theirs.get(name)!r} asked"
            for name in sorted(mine | theirs)
            if mine.get(name) != theirs.get(name)
        ]

    def slots(self) -> tuple[str, ...]:
        """Translator slots that the store can feed."""
        extra = tuple(class_slot(layer) for layer in self.layers if self.class_tokens)
        return (*self.layers, *extra)


def _identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that decide what a row holds; where weights lay and batches do not."""
    flat = {k: values[k] for k in ("backbone_digest", "transform", "layers", "dtype")}
    flat["class_tokens"] = values["class_tokens"]
    flat["backbone name"] = values["backbone"]["name"]
    for name in ("mode", "draws", "feature_dropout", "seed"):
        flat[f"extraction.{name}"] = values["extraction"][name]
    return json.loads(json.dumps(flat))


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what features are."""
    from importlib.metadata import version

    names = ("devil", "torch", "torchvision", "timm", "open_clip_torch", "transformers", "pyarrow")
    return {name: version(name) for name in names}


@contextmanager
def renamed(fs: fsspec.AbstractFileSystem, final: str) -> Iterator[str]:
    """A temporary name that becomes `final` when the block ends well, and else is removed."""
    folder, _, name = final.rpartition("/")
    temporary = f"{folder}/.{name}.{uuid4().hex[:8]}.tmp"
    try:
        yield temporary
        fs.mv(temporary, final)
    except BaseException:
        if fs.exists(temporary):
            fs.rm(temporary)
        raise


class PartMetadata(NamedTuple):
    """What a part's footer says of the shard it was made from."""

    source: str
    source_bytes: int
    rows: int
    errors: int
    seconds: float
    damaged: bool = False
    source_head: str = ""
    """Digest of the shard's beginning."""


class FeatureStore:
    """A folder of features; `create` to fill it, `open` to read it."""

    def __init__(self, root: str, manifest: Manifest) -> None:
        self.root = root.rstrip("/")
        self.manifest = manifest
        self.fs, self.path = fsspec.core.url_to_fs(self.root)

    @classmethod
    def open(cls, root: str) -> "FeatureStore":
        """Open a store for reading.

        Raises:
            FeatureStoreError: the folder, or its manifest, is missing or corrupt.
        """
        fs, path = fsspec.core.url_to_fs(root.rstrip("/"))
        name = f"{path}/{MANIFEST}"
        if not fs.exists(name):
            raise FeatureStoreError(
                f"{root} is no feature store: {MANIFEST} is missing. Make one with "
                "pipelines/extract.py."
            )
        try:
            values = json.loads(fs.cat_file(name))
        except ValueError as error:
            raise FeatureStoreError(f"{root}/{MANIFEST} is corrupt: {error}") from error
        return cls(root, Manifest.from_dict(values, f"{root}/{MANIFEST}"))

    @classmethod
    def create(cls, root: str, manifest: Manifest) -> "FeatureStore":
        """Make a store, or go on with one that was made under the same configuration.

        Raises:
            FeatureStoreError: the folder holds features of another configuration; says which.
        """
        fs, path = fsspec.core.url_to_fs(root.rstrip("/"))
        if fs.exists(f"{path}/{MANIFEST}"):
            store = cls.open(root)
            differences = store.manifest.differences(manifest)
            if differences:
                raise FeatureStoreError(
                    f"{root} holds features of another configuration: {'; '.join(differences)}. "
                    "Choose another folder, or remove this one."
                )
            return store
        fs.makedirs(f"{path}/errors", exist_ok=True)
        store = cls(root, manifest)
        store.write_manifest(manifest)
        return store

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest."""
        self.manifest = manifest
        content = json.dumps(manifest.to_dict(), indent=2).encode()
        with renamed(self.fs, f"{self.path}/{MANIFEST}") as name, self.fs.open(name, "wb") as file:
            file.write(content)

    def part_path(self, name: str) -> str:
        """Path of the part made from the shard called `name`."""
        return f"{self.path}/part-{name}.parquet"

    def parts(self) -> list[str]:
        """Paths of finished parts, sorted."""
        return sorted(self.fs.glob(f"{self.path}/part-*.parquet"))

    def metadata(self, part: str) -> PartMetadata:
        """A part's footer.

        Raises:
            FeatureStoreError: the file is corrupt, or no part of a store.
        """
        try:
            with self.fs.open(part, "rb") as file:
                schema = pq.read_schema(file)
            return PartMetadata(**json.loads(schema.metadata[METADATA]))
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise FeatureStoreError(
                f"{part} is no whole part of a feature store ({error}); remove it, extract again."
            ) from error

    def read(self, part: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of a part.

        Raises:
            FeatureStoreError: the file is corrupt, or lacks a column.
        """
        try:
            with self.fs.open(part, "rb") as file:
                return pq.read_table(file, columns=list(columns) if columns else None)
        except (pa.ArrowException, OSError) as error:
            raise FeatureStoreError(
                f"{part} cannot be read ({error}); remove it and extract again."
            ) from error

    def errors(self) -> pa.Table:
        """All error rows."""
        paths = sorted(self.fs.glob(f"{self.path}/errors/part-*.parquet"))
        tables = []
        for path in paths:
            with self.fs.open(path, "rb") as file:
                tables.append(pq.read_table(file))
        return pa.concat_tables(tables) if tables else ERROR_SCHEMA.empty_table()

    def row_schema(self) -> pa.Schema:
        """Schema of a part."""
        half = pa.float16()
        fields = [
            ("key", pa.string()),
            ("captions", pa.list_(pa.string())),
            ("width", pa.int32()),
            ("height", pa.int32()),
        ]
        extraction = self.manifest.extraction
        for layer, shape in self.manifest.layers.items():
            size = (
                tuple(shape)
                if extraction.mode == "maps"
                else (1 + extraction.draws, shape.channels)
            )
            fields.append((f"feature.{layer}", pa.fixed_shape_tensor(half, size)))
            if self.manifest.class_tokens:
                token = pa.fixed_shape_tensor(half, (shape.channels,))
                fields.append((f"class_token.{layer}", token))
        return pa.schema(fields)


def column_of(slot: str, layers: Sequence[str]) -> str:
    """The column that feeds a translator slot."""
    if slot in layers:
        return f"feature.{slot}"
    return f"class_token.{slot.removesuffix('.class')}"


def tensor_column(table: pa.Table, name: str) -> np.ndarray:
    """A tensor column as one array, rows first."""
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    return column.to_numpy_ndarray()


class PartWriter:
    """Writes one shard's rows and errors; both appear whole, the rows last, or not at all."""

    def __init__(self, store: FeatureStore, name: str) -> None:
        self.store = store
        self.name = name
        self.schema = store.row_schema()
        self.failures: list[dict[str, str]] = []
        self.rows = 0
        self._buffer: list[pa.RecordBatch] = []

    def add(self, columns: Mapping[str, Any]) -> None:
        """Add rows: lists for plain columns, arrays (row, ...) for tensor columns."""
        arrays = []
        for entry in self.schema:
            values = columns[entry.name]
            if isinstance(entry.type, pa.FixedShapeTensorType):
                contiguous = np.ascontiguousarray(values, dtype=np.float16)
                arrays.append(pa.FixedShapeTensorArray.from_numpy_ndarray(contiguous))
            else:
                arrays.append(pa.array(values, entry.type))
        batch = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        self.rows += batch.num_rows
        self._buffer.append(batch)

    def fail(self, key: str, source: str, stage: str, error: Exception) -> None:
        """Add an error row."""
        row = {"key": key, "source": source, "stage": stage}
        self.failures.append(row | {"error": type(error).__name__, "message": str(error)})

    def commit(self, metadata: PartMetadata) -> None:
        """Write errors, then rows, each under a temporary name and renamed."""
        errors = pa.Table.from_pylist(self.failures, schema=ERROR_SCHEMA)
        store = self.store
        target = f"{store.path}/errors/part-{self.name}.parquet"
        with renamed(store.fs, target) as name, store.fs.open(name, "wb") as file:
            pq.write_table(errors, file)
        schema = self.schema.with_metadata({METADATA: json.dumps(metadata._asdict()).encode()})
        table = pa.Table.from_batches(self._buffer, schema=self.schema).replace_schema_metadata(
            schema.metadata
        )
        rows = max(1, min(10_000, BUFFER_BYTES * max(1, table.num_rows) // max(1, table.nbytes)))
        with (
            renamed(store.fs, store.part_path(self.name)) as name,
            store.fs.open(name, "wb") as file,
        ):
            pq.write_table(table, file, row_group_size=rows, compression="zstd")
