"""The feature store: Parquet parts with one tensor column per layer, and a manifest.

``manifest.json``, ``part-<shard>.parquet`` (key, captions, width, height, per layer a fixed-shape
tensor) and ``errors/part-<shard>.parquet``. A part is written under a temporary name and
renamed last, so its presence says that the shard is done. Any fsspec address serves as folder.
"""

import json
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, NamedTuple
from uuid import uuid4

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from devil.data.sample import Failure
from devil.errors import FeatureStoreError, StorageError
from devil.manifest import Manifest
from devil.storage import guarded, in_threads, move, storage

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
METADATA = b"devil"
ERROR_SCHEMA = pa.schema([(name, pa.string()) for name in Failure._fields])


def temporary_name(final: str) -> str:
    """A name of its own beside `final`, for what is not whole yet."""
    folder, _, name = final.rpartition("/")
    return f"{folder}/.{name}.{uuid4().hex[:8]}.tmp"


@contextmanager
def renamed(fs: fsspec.AbstractFileSystem, final: str) -> Iterator[str]:
    """A temporary name that becomes `final` when the block ends well, and else is removed."""
    temporary = temporary_name(final)
    try:
        yield temporary
        move(fs, temporary, final)
    except BaseException:
        if fs.exists(temporary):
            fs.rm_file(temporary)
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
    failed: Mapping[str, int] = {}
    """Error rows by stage and reason; they sum to `errors`."""
    stages: Mapping[str, float] = {}
    """Seconds of each stage."""


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
        with storage(root):
            fs, path = fsspec.core.url_to_fs(root.rstrip("/"))
            name = f"{path}/{MANIFEST}"
            content = fs.cat_file(name) if fs.exists(name) else None
        if content is None:
            raise FeatureStoreError(
                f"{root} is no feature store: {MANIFEST} is missing. Make one with "
                "pipelines/extract.py."
            )
        try:
            values = json.loads(content)
        except ValueError as error:
            raise FeatureStoreError(f"{root}/{MANIFEST} is corrupt: {error}") from error
        return cls(root, Manifest.from_dict(values, f"{root}/{MANIFEST}"))

    @classmethod
    def planned(cls, root: str, manifest: Manifest) -> "FeatureStore":
        """The store at `root`, or the one that `create` would make there; nothing is written.

        Raises:
            FeatureStoreError: the folder holds features of another configuration; says which.
            StorageError: the folder cannot be reached.
        """
        store = cls(root, manifest)
        if not store.has(f"{store.path}/{MANIFEST}"):
            return store
        found = cls.open(root)
        differences = found.manifest.differences(manifest)
        if differences:
            raise FeatureStoreError(
                f"{root} holds features of another configuration: {'; '.join(differences)}. "
                "Choose another folder, or overwrite this one."
            )
        return found

    @classmethod
    def create(cls, root: str, manifest: Manifest, *, overwrite: bool = False) -> "FeatureStore":
        """Make a store, or go on with one that was made under the same configuration.

        Args:
            root: its folder.
            manifest: its configuration.
            overwrite: empty a store of another configuration first.

        Raises:
            FeatureStoreError, StorageError: as `planned`.
        """
        try:
            store = cls.planned(root, manifest)
        except FeatureStoreError as error:
            if not overwrite:
                raise
            logger.warning("%s It is emptied now.", error)
            store = cls(root, manifest)
            store.remove()
            with storage(root):
                store.fs.rm_file(f"{store.path}/{MANIFEST}")
        if not store.has(f"{store.path}/{MANIFEST}"):
            with storage(root):
                store.fs.makedirs(f"{store.path}/errors", exist_ok=True)
            store.write_manifest(manifest)
        return store

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest."""
        self.manifest = manifest
        content = json.dumps(manifest.to_dict(), indent=2).encode()
        target = f"{self.path}/{MANIFEST}"
        with storage(self.root), renamed(self.fs, target) as name, self.fs.open(name, "wb") as file:
            file.write(content)

    def part_path(self, name: str) -> str:
        """Path of the part made from the shard called `name`."""
        return f"{self.path}/part-{name}.parquet"

    def parts(self) -> list[str]:
        """Paths of finished parts, sorted."""
        return self._files(self.path, "part-", ".parquet")

    def _files(self, folder: str, prefix: str, suffix: str) -> list[str]:
        """Files of a folder as they are now, sorted; a glob would take its name for a pattern."""
        with storage(self.root):
            self.fs.invalidate_cache(folder)
            try:
                paths = self.fs.ls(folder, detail=False)
            except FileNotFoundError:
                return []
        names = ((path.rpartition("/")[2], path) for path in paths)
        return sorted(p for name, p in names if name.startswith(prefix) and name.endswith(suffix))

    def has(self, part: str) -> bool:
        """Whether a part, or another file, is there; a part that is there is finished."""
        with storage(self.root):
            return self.fs.exists(part)

    def part_names(self) -> set[str]:
        """Names of the shards whose parts are finished."""
        names = (part.rpartition("/part-")[2] for part in self.parts())
        return {name.removesuffix(".parquet") for name in names}

    def remove(self, names: Collection[str] | None = None) -> None:
        """Remove the parts and the errors of some shards, or of all."""
        self._remove("part-", ".parquet", names)

    def remove_unfinished(self, names: Collection[str]) -> None:
        """Remove what killed workers left of some shards, which nobody may be writing now."""
        self._remove(".part-", ".tmp", names)

    def _remove(self, prefix: str, suffix: str, names: Collection[str] | None) -> None:
        for folder in (self.path, f"{self.path}/errors"):
            for path in self._files(folder, prefix, suffix):
                name = path.rpartition("/")[2].removeprefix(prefix)
                if names is None or name.rpartition(".parquet")[0] in names:
                    # A worker that still runs may have put it in its place meanwhile.
                    with storage(self.root), suppress(FileNotFoundError):
                        self.fs.rm_file(path)

    def metadata(self, part: str) -> PartMetadata:
        """A part's footer.

        Raises:
            FeatureStoreError: the file is corrupt, or no part of a store.
        """
        with self._opened(part) as file:
            return PartMetadata(**json.loads(pq.read_metadata(file).metadata[METADATA]))

    def contents(self, names: Sequence[str] | None = None) -> dict[str, list[Any]]:
        """What decides the rows of parts of these names, or of all that are finished, by name.

        It is their number, and their source's size and head.

        Raises:
            FeatureStoreError: a part is missing or corrupt.
        """
        parts = self.parts() if names is None else [f"{self.path}/{name}" for name in names]
        return {
            part.rpartition("/")[2]: [found.rows, found.source_bytes, found.source_head]
            for part, found in zip(parts, in_threads(self.metadata, parts), strict=True)
        }

    def read(self, part: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of a part.

        Raises:
            FeatureStoreError: the file is corrupt, or lacks a column.
        """
        with self._opened(part) as file:
            return pq.read_table(file, columns=list(columns) if columns else None)

    def keys(self, part: str) -> list[str]:
        """Keys of a part's rows; errors as `read`."""
        return self.read(part, ["key"]).column("key").to_pylist()

    @contextmanager
    def _opened(self, part: str) -> Iterator[IO[bytes]]:
        """A part's file; what is wrong with it, or with the way to it, becomes our error."""
        try:
            with guarded(self.fs, part, part) as file:
                yield file
        except StorageError:
            raise
        except FileNotFoundError as error:
            raise FeatureStoreError(
                f"{part} is not there (any more); look at the folder, and extract again."
            ) from error
        except Exception as error:
            raise FeatureStoreError(
                f"{part} is no whole part of a feature store ({error}); remove it, extract again."
            ) from error

    def errors(self) -> pa.Table:
        """All error rows."""
        tables = [ERROR_SCHEMA.empty_table()]
        tables += map(self.read, self._files(f"{self.path}/errors", "part-", ".parquet"))
        return pa.concat_tables(tables)

    def row_bytes(self) -> int:
        """Bytes of a row's tensors, before compression."""
        tensors = [e.type for e in self.row_schema() if isinstance(e.type, pa.FixedShapeTensorType)]
        return sum(2 * math.prod(tensor.shape) for tensor in tensors)

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


def columns_of(slots: Sequence[str], layers: Sequence[str]) -> dict[str, str]:
    """The column of each slot."""
    return {slot: column_of(slot, layers) for slot in slots}


def tensor_column(table: pa.Table, name: str) -> np.ndarray:
    """A tensor column as one array, rows first."""
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    return column.to_numpy_ndarray()
