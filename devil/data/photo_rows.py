"""Photos in a folder, with captions in one file: the rows are held in memory, the photos are not.

COCO's captions and tables come this way. For more than some million photos use tars or Parquet: a
bucket answers for each photo apart.
"""

import json
from collections.abc import Callable, Iterator
from errno import ENAMETOOLONG
from functools import cached_property
from itertools import islice
from pathlib import PurePosixPath
from typing import NamedTuple

import fsspec

from devil.config import SourceConfig
from devil.data.sample import Failure, Sample, unicode_text
from devil.data.shard import Shard, ShardIdentity, digest, stretch_name
from devil.errors import DataError
from devil.storage import is_of_all_files, is_storage_error, storage, storage_error

AT_ONCE = 32
"""Photos fetched together."""


class PhotoRow(NamedTuple):
    """One photo's file, below the folder, and its captions."""

    file: str
    captions: tuple[str, ...]


class PhotoRows:
    """Photos and captions; `start` and `stop` of a shard count rows."""

    def __init__(
        self,
        load: Callable[[str, SourceConfig], list[PhotoRow]],
        address: str,
        config: SourceConfig,
    ) -> None:
        """Take what reads the rows of the file at `address`; it is called at first use."""
        self.load = load
        self.address = address
        self.config = config
        self.folder = (config.images or address.rpartition("/")[0] or ".").rstrip("/")

    @cached_property
    def rows(self) -> list[PhotoRow]:
        """All of them, in the file's order."""
        return self.load(self.address, self.config)

    def shards(self) -> list[Shard]:
        """Stretches of `rows_per_shard` rows."""
        name, size = PurePosixPath(self.address).stem, self.config.rows_per_shard
        starts = range(0, len(self.rows), size)
        stretches = [(start, min(start + size, len(self.rows))) for start in starts]
        return [
            Shard(stretch_name(name, i), self.address, start, stop, stop - start, start)
            for i, (start, stop) in enumerate(stretches)
        ]

    def read(self, shard: Shard) -> Iterator[Sample | Failure]:
        """Its photos; those that are not there, or cannot be opened, are failures.

        Raises:
            StorageError: of `AT_ONCE` photos none can be opened, or the file system fails.
        """
        rows, some_are_read = iter(self._stretch(shard)), False
        while batch := list(islice(rows, AT_ONCE)):
            contents = self._fetched(batch)
            # The last batch may hold one photo: it is judged beside the batch before.
            beside = some_are_read and len(batch) < AT_ONCE
            some_are_read = beside or any(isinstance(content, bytes) for content in contents)
            for row, content in zip(batch, contents, strict=True):
                yield self._row(row, content, some_are_read=some_are_read)

    def identity(self, shard: Shard) -> ShardIdentity:
        """Size and digest of its rows as JSON; photos are told by their names alone."""
        content = json.dumps(self._stretch(shard)).encode()
        return ShardIdentity(len(content), digest(content))

    def _stretch(self, shard: Shard) -> list[PhotoRow]:
        return self.rows[shard.start : shard.stop]

    def _fetched(self, rows: list[PhotoRow]) -> list[bytes | Exception]:
        """What each row's file holds, or why it cannot be had."""
        with storage(self.folder):
            fs, folder = fsspec.core.url_to_fs(self.folder)
            inside = [row.file for row in rows if _is_below(row.file)]
            # Other than `cat`, this takes no name for a pattern.
            answers = fs.cat_ranges([f"{folder}/{file}" for file in inside], None, None)
        contents = dict(zip(inside, answers, strict=True))
        return [
            contents.get(row.file, DataError(f"{row.file!r} is not below the folder"))
            for row in rows
        ]

    def _row(
        self, row: PhotoRow, content: bytes | Exception, *, some_are_read: bool
    ) -> Sample | Failure:
        path = f"{self.folder}/{row.file}"
        if isinstance(content, Exception):
            if _is_of_folder(content, some_are_read=some_are_read):
                raise storage_error(path, content) from content
            return Failure.of(row.file, path, "fetch", content)
        key, source = unicode_text(row.file), unicode_text(path)
        return Sample(key=key, source=source, image=content, captions=row.captions)


def _is_below(file: str) -> bool:
    """Whether a name leads to a file below the folder; lists of others must not read elsewhere."""
    return not file.startswith("/") and ".." not in file.split("/")


def _is_of_folder(error: Exception, *, some_are_read: bool) -> bool:
    """Whether an error is the file system's, and not one of this photo alone."""
    if some_are_read:
        return is_of_all_files(error)
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return False
    return is_storage_error(error) and getattr(error, "errno", None) != ENAMETOOLONG
