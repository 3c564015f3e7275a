"""A table of photo files and captions (.csv, .tsv, .jsonl, .parquet) → photos and their captions.

The usual layout of a plain folder: `metadata.csv` or `captions.tsv` beside the photos, with a
header. A file that stands on several rows has several captions.
"""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from devil.config import SourceConfig
from devil.data.columns import CAPTION_NAMES, FILE_NAMES, find_column
from devil.data.photo_rows import PhotoRow
from devil.data.sample import texts
from devil.errors import DataError
from devil.storage import storage

Row = tuple[int, dict[str, Any]]
"""Line or number, and cells by column."""


def table_rows(address: str, config: SourceConfig) -> list[PhotoRow]:
    """Files in the order in which they first appear.

    Raises:
        DataError: the table is missing, broken (with the line), empty, of another form, or lacks
            a column.
        StorageError: the file system fails.
    """
    captions: dict[str, list[Any]] = {}
    names: tuple[str, str] | None = None
    for number, row in _read(address):
        file_column, caption_column = names = names or _columns(address, list(row), config)
        file, found = row.get(file_column), row.get(caption_column)
        if not isinstance(file, str) or not file:
            raise DataError(
                f"{address}, row {number}: its {file_column} is {str(file)[:60]!r}; a photo's file "
                "below the folder is needed."
            )
        captions.setdefault(file, []).extend(found if isinstance(found, list) else [found])
    if not captions:
        raise DataError(f"{address} is empty; give a table with a header, and rows below it.")
    return [PhotoRow(file, texts(found)) for file, found in captions.items()]


def _columns(address: str, names: list[str], config: SourceConfig) -> tuple[str, str]:
    return (
        find_column(names, FILE_NAMES, config.image_column, place=address, kind="image"),
        find_column(names, CAPTION_NAMES, config.caption_column, place=address, kind="caption"),
    )


def _read(address: str) -> Iterator[Row]:
    readers = {".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl, ".parquet": _parquet}
    found = [reader for ending, reader in readers.items() if address.lower().endswith(ending)]
    if not found:
        raise DataError(f"{address} is no table; allowed: {', '.join(readers)}.")
    content = _content(address)
    try:
        yield from found[0](content)
    except (ValueError, csv.Error, RecursionError, pa.ArrowException, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{address} is broken ({type(error).__name__}: {error}); correct the file."
        ) from error


def _content(address: str) -> bytes:
    with storage(address):
        fs, path = fsspec.core.url_to_fs(address)
        try:
            return fs.cat_file(path)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise DataError(f"{address} does not exist, or is a folder; give a table.") from error


def _csv(content: bytes) -> Iterator[Row]:
    yield from _cells(content, csv.excel)


def _tsv(content: bytes) -> Iterator[Row]:
    class Tabs(csv.excel_tab):
        quoting = csv.QUOTE_NONE  # a quotation mark is part of a caption

    yield from _cells(content, Tabs)


def _cells(content: bytes, dialect: type[csv.Dialect]) -> Iterator[Row]:
    rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), dialect, strict=True)
    header = next(rows, [])
    for row in rows:
        if row and len(row) != len(header):
            raise ValueError(
                f"line {rows.line_num} has {len(row)} cells, the header {', '.join(header)}"
            )
        if row:
            yield rows.line_num, dict(zip(header, row, strict=True))


def _jsonl(content: bytes) -> Iterator[Row]:
    # Only line feeds end lines: captions may hold other ends.
    for number, line in enumerate(content.decode("utf-8-sig").split("\n"), start=1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no object")
            yield number, row


def _parquet(content: bytes) -> Iterator[Row]:
    file = pq.ParquetFile(pa.BufferReader(content))
    number = 0
    for batch in file.iter_batches():
        for row in batch.to_pylist():
            yield number, row
            number += 1
