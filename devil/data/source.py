"""Sources of captioned pictures: cut into shards, the units of work, and read shard by shard.

A source is opened from its address and a `SourceConfig`, both plain values, so that every worker
opens its own. What a shard is called and what lies in it depend on nothing else.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import fsspec

from devil.config import SourceConfig
from devil.data.sample import Failure, Sample
from devil.data.webdataset import list_shards, read_shard, shard_names
from devil.storage import storage

HEAD_BYTES = 65_536


class Shard(NamedTuple):
    """A unit of work: a file of the source, or a stretch of one."""

    name: str
    """Of what is made from it; no two shards of a source have the same."""
    address: str
    """The file."""
    start: int = 0
    """Where the stretch begins; rows or bytes, as the source counts."""
    stop: int | None = None
    """Where it ends; None: with the file."""
    rows: int | None = None
    """How many it holds; None: only reading tells."""


class ShardIdentity(NamedTuple):
    """What tells a shard from another one of the same name, wherever it lies."""

    size: int
    """Bytes."""
    head: str
    """Digest of its beginning."""


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


def file_identity(address: str) -> ShardIdentity:
    """Size and beginning of a file; (0, "") where there is none.

    Raises:
        StorageError: the file system fails.
    """
    with storage(address):
        fs, path = fsspec.core.url_to_fs(address)
        try:
            with fs.open(path, "rb") as file:
                head = file.read(HEAD_BYTES)
            return ShardIdentity(int(fs.size(path) or 0), digest(head))
        except FileNotFoundError:
            return ShardIdentity(0, "")


def digest(content: bytes) -> str:
    """A short digest."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


FORMATS: dict[str, Callable[[str, SourceConfig], Source]] = {
    "webdataset": Tars,
}
"""Builders of sources by the name of their format."""


def open_source(address: str, config: SourceConfig | None = None) -> Source:
    """The source at an address.

    Args:
        address: a local path or glob, or any fsspec address.
        config: how it is read; None: as its ending says.
    """
    config = config or SourceConfig()
    return FORMATS[config.format if config.format != "auto" else guessed_format(address)](
        address, config
    )


def guessed_format(address: str) -> str:
    """The format that an address's ending tells."""
    return "webdataset"
