"""Parquet files of pictures and captions, as `datasets` and img2dataset write them.

A picture is binary, or a struct with `bytes` in it; captions are a text or a list of texts. Files
are cut between row groups, so that a worker reads its own rows alone.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from devil.config import SourceConfig
from devil.data.columns import BYTES_NAMES, CAPTION_NAMES, KEY_NAMES, find_column
from devil.data.sample import Failure, Sample, texts, unicode_text
from devil.data.shard import (
    HEAD_BYTES,
    Shard,
    ShardIdentity,
    digest,
    file_identity,
    file_names,
    list_files,
    stretch_name,
)
from devil.errors import DataError
from devil.storage import guarded, storage

SUFFIX = ".parquet"
BATCH_ROWS = 64
"""Rows held in memory; each has its picture."""
BUFFER_BYTES = 1 << 20
"""Read at once; without a buffer pyarrow reads all pictures of a row group."""
FOOTERS_AT_ONCE = 16
"""Files whose row groups are looked up together: in a bucket each takes two round trips."""


class _Columns(NamedTuple):
    """Names; rows without a key are numbered."""

    key: str | None
    image: str
    caption: str


class ParquetFiles:
    """A folder of files, a file, or a glob; `start` and `stop` of a shard count row groups."""

    def __init__(self, address: str, config: SourceConfig) -> None:
        self.address = address
        self.config = config

    def shards(self) -> list[Shard]:
        """Stretches of about `rows_per_shard` rows; a damaged file is one."""
        paths = list_files(self.address, SUFFIX)
        names = file_names(paths, SUFFIX)
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            found = list(pool.map(self._shards, names, paths))
        unusable = [error for _, error in found if error]
        if len(unusable) == len(found):  # wrong options, and not damage to some
            raise unusable[0]
        return [shard for shards, _ in found for shard in shards]

    def _shards(self, name: str, path: str) -> tuple[list[Shard], DataError | None]:
        """A file's shards, and why they cannot be read."""
        try:
            with _opened(path) as file:
                shards = self._stretches(name, path, file.metadata)
                self._columns(path, file.schema_arrow)
        except DataError as error:
            return [Shard(stretch_name(name, 0), path)], error
        return shards, None

    def _stretches(self, name: str, path: str, footer: pq.FileMetaData) -> list[Shard]:
        shards: list[Shard] = []
        start = rows = seen = 0
        for group in range(footer.num_row_groups):
            rows += footer.row_group(group).num_rows
            if rows >= self.config.rows_per_shard or group == footer.num_row_groups - 1:
                name_here = stretch_name(name, len(shards))
                shards.append(Shard(name_here, path, start, group + 1, rows, seen))
                start, rows, seen = group + 1, 0, seen + rows
        return shards or [Shard(stretch_name(name, 0), path)]

    def read(self, shard: Shard) -> Iterator[Sample | Failure]:
        """The rows of its row groups.

        Raises:
            DataError: the file is missing, empty or damaged, or lacks a column.
            StorageError: the file system fails.
        """
        number = shard.first_row
        with _opened(shard.address) as file:
            columns = self._columns(shard.address, file.schema_arrow)
            stop = file.num_row_groups if shard.stop is None else shard.stop
            batches = file.iter_batches(
                BATCH_ROWS,
                row_groups=range(shard.start, stop),
                columns=[name for name in columns if name is not None],
            )
            for batch in batches:
                for row in batch.to_pylist():
                    yield _entry(row, columns, shard.address, number)
                    number += 1
        if number == shard.first_row:
            raise DataError(f"shard {shard.address} is empty: it holds no rows.")

    def identity(self, shard: Shard) -> ShardIdentity:
        """Size and beginning of its row groups."""
        if shard.stop is None:
            return file_identity(shard.address)
        try:
            with _opened(shard.address) as file:
                groups = [file.metadata.row_group(g) for g in range(shard.start, shard.stop)]
        except DataError:  # it has been damaged since
            return file_identity(shard.address)
        first = groups[0].column(0)
        begin = first.dictionary_page_offset or first.data_page_offset
        size = sum(g.column(c).total_compressed_size for g in groups for c in range(g.num_columns))
        with storage(shard.address):
            fs, path = fsspec.core.url_to_fs(shard.address)
            head = fs.cat_file(path, start=begin, end=begin + min(size, HEAD_BYTES))
        return ShardIdentity(size, digest(head + self._named()))

    def _named(self) -> bytes:
        """Columns that the user named: with others the same bytes are other rows."""
        config = self.config
        names = (config.key_column, config.image_column, config.caption_column)
        return json.dumps(names).encode() if any(names) else b""

    def _columns(self, path: str, schema: pa.Schema) -> _Columns:
        names, config = schema.names, self.config
        image = find_column(names, BYTES_NAMES, config.image_column, place=path, kind="image")
        kind = schema.field(image).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise DataError(
                f"{path}: column {image} holds {kind}; pictures are binary, or a struct with "
                "binary `bytes` (--source.image-column names another)."
            )
        key = None
        if config.key_column or any(name in names for name in KEY_NAMES):
            key = find_column(names, KEY_NAMES, config.key_column, place=path, kind="key")
        caption = find_column(
            names, CAPTION_NAMES, config.caption_column, place=path, kind="caption"
        )
        return _Columns(key, image, caption)


def _entry(row: dict[str, Any], columns: _Columns, source: str, number: int) -> Sample | Failure:
    image, captions = row[columns.image], row[columns.caption]
    numbered = f"{file_names([source], SUFFIX)[0]}-{number:08d}"
    key = numbered if columns.key is None else row[columns.key]
    if key is None or key == "":
        return Failure.of(numbered, source, "key", DataError(f"row {number} has no key"))
    return Sample(
        key=unicode_text(str(key)),
        source=source,
        image=image["bytes"] if isinstance(image, dict) else image,
        captions=texts(captions if isinstance(captions, list) else [captions]),
    )


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    """The file; what cannot be read in it is a `DataError`, a place out of reach is none."""
    with storage(path):
        fs, name = fsspec.core.url_to_fs(path)
    try:
        with guarded(fs, name, path) as file:
            yield pq.ParquetFile(file, buffer_size=BUFFER_BYTES)
    except FileNotFoundError as error:
        raise DataError(f"shard {path} does not exist.") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"shard {path} is damaged ({type(error).__name__}: {error}); fetch it again."
        ) from error
