"""File systems far away, which take their time and fail: a full disk, a bucket out of reach."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC, errorcode
from itertools import islice
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from devil.errors import DevilError, MissingToolError, StorageError

REMOTE = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "s3fs"}
"""Packages whose errors are those of a file system, though most are not `OSError`."""
OF_ALL_FILES = {
    *("EDQUOT", "ENOSPC", "EMFILE", "ENFILE", "ESTALE"),
    *("EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENOTCONN"),
    *("EBUSY", "EREMOTEIO"),
}
"""Errors that do not depend on the file; the last two are 503 and 500 of s3fs."""
THREADS = 32
"""Requests at once."""

Thing = TypeVar("Thing")
Found = TypeVar("Found")


def is_storage_error(error: BaseException) -> bool:
    """Whether a file system raised this, and not what is written in a file."""
    return isinstance(error, OSError) or _package(error) in REMOTE


def _package(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def is_of_all_files(error: BaseException) -> bool:
    """Whether a file system raised this, and would for any file in it."""
    if isinstance(error, OSError) and errorcode.get(error.errno or 0) in OF_ALL_FILES:
        return True
    return isinstance(error, ConnectionError | TimeoutError) or _package(error) in REMOTE


def storage_error(address: str, error: BaseException) -> StorageError:
    """What to tell about a file system's error."""
    if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
        return StorageError(
            f"there is no room left at {address} ({error}); make some and start again: what is "
            "finished stays."
        )
    return StorageError(
        f"{address} cannot be used ({type(error).__name__}: {error}); look at the address, the "
        "credentials and the network, and start again: what is finished stays."
    )


@contextmanager
def storage(address: str) -> Iterator[None]:
    """Raise a file system's errors inside the block as `StorageError`; others pass.

    Raises:
        MissingToolError: a package for this kind of address is not installed.
    """
    try:
        yield
    except DevilError:
        raise
    except ImportError as error:
        raise MissingToolError(
            f"{address} needs a package that is not installed ({error}); s3:// comes with this "
            "package's extra `s3`, gs:// with `gs`: pip install -c constraints.txt '.[s3]'."
        ) from error
    except Exception as error:
        if not is_storage_error(error):
            raise
        raise storage_error(address, error) from error


class _Guarded:
    """A file whose errors are `StorageError`: pyarrow tells damage in it by `OSError`, too."""

    def __init__(self, address: str, file: Any) -> None:
        self.address = address
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def read(self, size: int = -1) -> bytes:
        try:
            return self.file.read(size)
        except Exception as error:  # each file system raises kinds of its own
            raise storage_error(self.address, error) from error


@contextmanager
def guarded(fs: fsspec.AbstractFileSystem, path: str, address: str) -> Iterator[Any]:
    """A file to read, in which whatever else is raised is due to what is written in it.

    Raises:
        FileNotFoundError: it does not exist.
        StorageError: the file system fails.
    """
    try:
        file = fs.open(path, "rb")
    except FileNotFoundError:
        raise
    except Exception as error:
        raise storage_error(address, error) from error
    with file:
        yield _Guarded(address, file)


def move(fs: fsspec.AbstractFileSystem, source: str, target: str) -> None:
    """Put a file in the place of another: in one step in a folder, as a copy in a bucket.

    fsspec's own `mv` copies in a folder, too, where renaming fails, and elsewhere takes marks in a
    name for a pattern.
    """
    if isinstance(fs, LocalFileSystem):
        os.replace(source, target)
    else:
        fs.cp_file(source, target)
        fs.rm_file(source)


def as_needed(
    function: Callable[[Thing], Found], things: Sequence[Thing], *, ahead: int = 8
) -> Iterator[Found]:
    """The same, some results ahead of the caller and no more: together they may be large."""
    with ThreadPoolExecutor(ahead) as pool:
        left = iter(things)
        pending = deque(pool.submit(function, thing) for thing in islice(left, ahead))
        while pending:
            found = pending.popleft().result()
            pending.extend(pool.submit(function, thing) for thing in islice(left, 1))
            yield found


def in_threads(function: Callable[[Thing], Found], things: Sequence[Thing]) -> list[Found]:
    """Results of requests for many things at once, in their order; the first error is raised."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, things))
