"""Writes a part of a feature store: whole, or not at all."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from devil.data.sample import Failure
from devil.features import (
    ERROR_SCHEMA,
    METADATA,
    FeatureStore,
    PartMetadata,
    renamed,
    temporary_name,
)
from devil.storage import move, storage

GROUP_BYTES = 64_000_000
"""Row groups are written when about this much has gathered."""
GROUP_ROWS = 10_000
"""Rows of a group, at most."""


class PartWriter:
    """Writes one shard's rows and errors; both appear whole, the rows last, or not at all.

    A context manager: without `commit` nothing is left. Rows go to a file under a temporary name as
    they come, so memory holds one row group whatever the shard's size.
    """

    def __init__(self, store: FeatureStore, name: str) -> None:
        self.store = store
        self.name = name
        self.schema = store.row_schema()
        self.failures: list[Failure] = []
        self.rows = 0
        self._group = max(1, min(GROUP_ROWS, GROUP_BYTES // max(1, store.row_bytes())))
        self._waiting = self.schema.empty_table()
        self._temporary = temporary_name(store.part_path(name))
        self._file: Any = None
        self._parquet: pq.ParquetWriter | None = None

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was not committed."""
        if self._file is None:
            return
        with suppress(Exception):  # a full disk fails here again
            if self._parquet is not None:
                self._parquet.close()
        with suppress(Exception):
            self._file.close()
        with storage(self.store.root):
            self.store.fs.rm_file(self._temporary)

    def add(self, columns: Mapping[str, Any]) -> None:
        """Add rows: lists for plain columns, arrays (row, ...) for tensor columns.

        Raises:
            StorageError: the store cannot be written to.
        """
        arrays = []
        for entry in self.schema:
            values = columns[entry.name]
            if isinstance(entry.type, pa.FixedShapeTensorType):
                contiguous = np.ascontiguousarray(values, dtype=np.float16)
                arrays.append(pa.FixedShapeTensorArray.from_numpy_ndarray(contiguous))
            else:
                arrays.append(pa.array(values, entry.type))
        batch = pa.Table.from_arrays(arrays, schema=self.schema)
        self.rows += batch.num_rows
        self._waiting = pa.concat_tables([self._waiting, batch])
        whole = self._waiting.num_rows // self._group * self._group
        if whole:
            self._write(self._waiting[:whole])
            self._waiting = self._waiting[whole:]

    def fail(self, failure: Failure) -> None:
        """Add an error row."""
        self.failures.append(failure)

    def commit(self, metadata: PartMetadata) -> None:
        """Put the errors, then the rows in their places.

        Raises:
            StorageError: the store cannot be written to.
        """
        errors = pa.Table.from_pylist([f._asdict() for f in self.failures], schema=ERROR_SCHEMA)
        store = self.store
        with storage(store.root):
            target = f"{store.path}/errors/part-{self.name}.parquet"
            with renamed(store.fs, target) as name, store.fs.open(name, "wb") as file:
                pq.write_table(errors, file)
            parquet = self._write(self._waiting)
            parquet.add_key_value_metadata({METADATA: json.dumps(metadata._asdict())})
            parquet.close()
            self._file.close()
            move(store.fs, self._temporary, store.part_path(self.name))
        self._file = None

    def _write(self, rows: pa.Table) -> pq.ParquetWriter:
        """Append row groups; the first time makes the file."""
        with storage(self.store.root):
            if self._parquet is None:
                self._file = self.store.fs.open(self._temporary, "wb")
                self._parquet = pq.ParquetWriter(self._file, self.schema, compression="zstd")
            self._parquet.write_table(rows, row_group_size=self._group)
        return self._parquet
