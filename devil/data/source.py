"""Sources of captioned pictures: cut into shards, the units of work, and read shard by shard.

A source is opened from its address and a `SourceConfig`, both plain values, so that every worker
opens its own. What a shard is called and what lies in it depend on nothing else.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import fsspec

from devil.config import SourceConfig
from devil.data.caption_table import table_rows
from devil.data.coco_captions import coco_rows
from devil.data.parquet import ParquetFiles
from devil.data.photo_rows import PhotoRows
from devil.data.sample import Failure, Sample
from devil.data.shard import Shard, ShardIdentity, file_identity, folder_files
from devil.data.url_list import UrlList
from devil.data.webdataset import list_shards, read_shard, shard_names
from devil.errors import DataError
from devil.storage import storage


class Source(Protocol):
    """Captioned pictures in shards."""

    def shards(self) -> list[Shard]:
        """All of them, by name.

        Raises:
            DataError: there are none, or the source is malformed.
            StorageError: the source cannot be reached.
        """
        ...

    def read(self, shard: Shard) -> Iterator[Sample | Failure]:
        """Its rows, in order.

        Raises:
            DataError: the shard is damaged; after all rows that can be read.
            StorageError: the shard cannot be reached.
        """
        ...

    def identity(self, shard: Shard) -> ShardIdentity:
        """What is compared before a finished part is taken for this shard's."""
        ...


class Tars:
    """Webdataset shards (`devil.data.webdataset`): a folder of them, a file, or a glob."""

    def __init__(self, address: str, config: SourceConfig) -> None:
        self.address = address

    def shards(self) -> list[Shard]:
        """One for each tar."""
        paths = list_shards(self.address)
        return [Shard(name, path) for name, path in zip(shard_names(paths), paths, strict=True)]

    def read(self, shard: Shard) -> Iterator[Sample | Failure]:
        """The tar's samples."""
        return read_shard(shard.address)

    def identity(self, shard: Shard) -> ShardIdentity:
        """Size and beginning of the tar."""
        return file_identity(shard.address)


FORMATS: dict[str, Callable[[str, SourceConfig], Source]] = {
    "webdataset": Tars,
    "parquet": ParquetFiles,
    "tsv": UrlList,
    "coco": partial(PhotoRows, coco_rows),
    "table": partial(PhotoRows, table_rows),
}
"""Builders of sources by the name of their format."""

ENDINGS = {
    ".tar": "webdataset",
    ".parquet": "parquet",
    ".tsv": "tsv",
    ".json": "coco",
    ".csv": "table",
    ".jsonl": "table",
}
"""Formats that an address's ending tells; a table may also be .tsv or .parquet, if it is said."""
FOLDERS = (".tar", ".parquet", ".tsv")
"""Endings of files that are a source in any number; the first that a folder holds is read."""


def open_source(address: str, config: SourceConfig | None = None) -> Source:
    """The source at an address.

    Args:
        address: a local path or glob, or any fsspec address.
        config: how it is read; None: as its ending says.

    Raises:
        DataError: the format is to be guessed, and the ending tells none.
        StorageError: the address cannot be reached.
    """
    config = config or SourceConfig()
    name = guessed_format(address) if config.format == "auto" else config.format
    return FORMATS[name](address, config)


def guessed_format(address: str) -> str:
    """The format that an address's ending tells; of a folder, that of the files in it.

    Raises:
        DataError: none.
        StorageError: the address cannot be reached.
    """
    for ending, name in ENDINGS.items():
        if address.lower().endswith(ending):
            return name
    with storage(address):
        fs, path = fsspec.core.url_to_fs(address)
        for ending in FOLDERS:
            if fs.isdir(path) and folder_files(fs, path, ending):
                return ENDINGS[ending]
        with contextlib.suppress(FileNotFoundError):
            fs.info(path)  # a bucket out of reach is no missing folder
    raise DataError(
        f"no shards at {address}, as far as its name tells: it is no folder of "
        f"{', '.join(FOLDERS)} files and does not end in {', '.join(ENDINGS)}. Look at the "
        f"address, or name the format (--source.format): {', '.join(FORMATS)}."
    )
