"""Shards, the units of work: files of a source or stretches of them, and what tells them apart."""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import fsspec

from devil.errors import DataError
from devil.storage import storage

HEAD_BYTES = 65_536


class Shard(NamedTuple):
    """A unit of work: a file of the source, or a stretch of one."""

    name: str
    """Of what is made from it; no two shards of a source have the same."""
    address: str
    """The file."""
    start: int = 0
    """Where the stretch begins; rows, bytes or row groups, as the source counts."""
    stop: int | None = None
    """Where it ends; None: with the file."""
    rows: int | None = None
    """How many it holds; None: only reading tells."""
    first_row: int = 0
    """Number of its first row in the file."""


class ShardIdentity(NamedTuple):
    """What tells a shard from another one of the same name, wherever it lies."""

    size: int
    """Bytes."""
    head: str
    """Digest of its beginning."""


def list_files(pattern: str, suffix: str) -> list[str]:
    """Paths, sorted, from a folder (its files of one suffix), a file, or a glob.

    Args:
        pattern: a local path, or any fsspec address.
        suffix: with its dot.

    Raises:
        DataError: nothing matches.
        StorageError: the address cannot be reached.
    """
    with storage(pattern):
        fs, path = fsspec.core.url_to_fs(pattern)
        fs.invalidate_cache()  # files may have been added since
        if fs.isdir(path):
            found = folder_files(fs, path, suffix)
        elif fs.exists(path):  # also a name that looks like a pattern
            found = [path]
        else:
            found = fs.glob(path) if any(mark in pattern for mark in "*?[") else []
    if not found:
        raise DataError(
            f"no shards at {pattern}; give a {suffix} file, a folder of them, or a glob."
        )
    return sorted(fs.unstrip_protocol(p) if "://" in pattern else p for p in found)


def folder_files(fs: fsspec.AbstractFileSystem, folder: str, suffix: str) -> list[str]:
    """Paths of a folder's files of one suffix; marks in the folder's name are no pattern."""
    with contextlib.suppress(FileNotFoundError):  # an empty bucket is none for some
        return [path for path in fs.ls(folder, detail=False) if path.endswith(suffix)]
    return []


def file_names(paths: Sequence[str], suffix: str) -> list[str]:
    """Names of files without their suffix, in their order, for what goes into one folder.

    Raises:
        DataError: two have the same.
    """
    names = [PurePosixPath(path).name.removesuffix(suffix) for path in paths]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"several shards are named {twice[:5]}; give each a name of its own.")
    return names


def stretch_name(file_name: str, index: int) -> str:
    """The name of a file's stretch; the same whether the file has one or many."""
    return f"{file_name}-{index:05d}"


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
