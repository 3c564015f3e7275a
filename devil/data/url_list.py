"""Lists of captions and addresses, as Google publishes CC3M: lines ``caption TAB address``.

There is no header, and a row's key is the file's name and its number in it. Files are cut at line
ends and never held whole; pictures are fetched as their rows are read (`devil.data.fetcher`).
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import fsspec
import numpy as np

from devil.config import SourceConfig
from devil.data.fetcher import Fetcher
from devil.data.sample import Failure, Sample, texts, unicode_text
from devil.data.shard import (
    HEAD_BYTES,
    Shard,
    ShardIdentity,
    digest,
    file_names,
    list_files,
    stretch_name,
)
from devil.errors import DataError
from devil.storage import storage

SUFFIX = ".tsv"
BLOCK_BYTES = 4 << 20


class _Row(NamedTuple):
    key: str
    caption: str
    url: str


class UrlList:
    """A file, a folder of them, or a glob; `start` and `stop` of a shard count bytes."""

    def __init__(self, address: str, config: SourceConfig) -> None:
        self.address = address
        self.config = config

    def shards(self) -> list[Shard]:
        """Stretches of `rows_per_shard` lines."""
        paths = list_files(self.address, SUFFIX)
        return [
            Shard(stretch_name(name, i), path, start, stop, rows, i * self.config.rows_per_shard)
            for name, path in zip(file_names(paths, SUFFIX), paths, strict=True)
            for i, (start, stop, rows) in enumerate(_stretches(path, self.config.rows_per_shard))
        ]

    def read(self, shard: Shard) -> Iterator[Sample | Failure]:
        """Its rows with their pictures; those that cannot be fetched are failures.

        Raises:
            DataError: the file has become shorter, or is empty.
            StorageError: the file system fails, or the network does.
        """
        rows = self._rows(shard)
        with Fetcher(self.config.fetch) as fetcher:
            found = fetcher.fetched(row.url for row in rows if isinstance(row, _Row))
            for row in rows:
                if isinstance(row, Failure):
                    yield row
                elif isinstance(content := next(found), bytes):
                    yield _sample(row, content)
                else:
                    yield Failure.of(row.key, row.url, "fetch", content)

    def identity(self, shard: Shard) -> ShardIdentity:
        """Bytes of its lines, and their beginning."""
        stop = shard.start + HEAD_BYTES
        stop = stop if shard.stop is None else min(stop, shard.stop)
        head = _bytes(shard.address, shard.start, stop)
        return ShardIdentity((shard.stop or 0) - shard.start, digest(head))

    def _rows(self, shard: Shard) -> list[_Row | Failure]:
        content = _bytes(shard.address, shard.start, shard.stop)
        if not content or len(content) != (shard.stop or 0) - shard.start:
            raise DataError(
                f"{shard.address} has {len(content):,} bytes at {shard.start:,}, and "
                f"{shard.name} needs those up to {shard.stop or 0:,}: it is empty, or was cut off."
            )
        name = file_names([shard.address], SUFFIX)[0]
        lines = content.removesuffix(b"\n").split(b"\n")
        return [
            _row(f"{name}-{number:08d}", shard.address, line)
            for number, line in enumerate(lines, start=shard.first_row)
        ]


def _stretches(path: str, rows: int) -> list[tuple[int, int, int]]:
    """Begin, end and lines of stretches of `rows` lines; one without lines if the file is empty."""
    bounds, lines, size, last = [0], 0, 0, b""
    with storage(path), fsspec.open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):  # type: ignore[union-attr]
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            bounds += (ends[rows - 1 - lines % rows :: rows] + size + 1).tolist()
            lines, size, last = lines + len(ends), size + len(block), block
    if not size:
        return [(0, 0, 0)]
    lines += not last.endswith(b"\n")
    if size > bounds[-1]:
        bounds.append(size)
    return [
        (start, stop, min(rows, lines - i * rows))
        for i, (start, stop) in enumerate(pairwise(bounds))
    ]


def _bytes(path: str, start: int, stop: int | None) -> bytes:
    with storage(path):
        fs, name = fsspec.core.url_to_fs(path)
        try:
            return fs.cat_file(name, start=start, end=stop) if start != stop else b""
        except FileNotFoundError as error:
            raise DataError(f"{path} does not exist.") from error


def _row(key: str, source: str, line: bytes) -> _Row | Failure:
    cells = line.decode("utf-8", "replace").rstrip("\r").split("\t")
    if len(cells) != 2:
        error = DataError(f"the line has {len(cells)} cells; caption TAB address is needed")
        return Failure.of(key, source, "fetch", error)
    return _Row(unicode_text(key), cells[0], cells[1].strip())


def _sample(row: _Row, content: bytes) -> Sample:
    return Sample(
        key=row.key,
        source=row.url,
        image=content,
        captions=texts([row.caption]),
        record={"url": row.url},
    )
