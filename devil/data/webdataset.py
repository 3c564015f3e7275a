"""Webdataset shards as img2dataset writes them: tars of `<key>.jpg`, `<key>.txt`, `<key>.json`.

Reading is by hand, for what a general loader hides matters here: a truncated tar ends silently in
most readers, and a shard's `_stats.json` says how many samples it should have held.
"""

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import fsspec

from devil.data.sample import Sample, texts, unicode_text
from devil.data.shard import file_names, list_files
from devil.errors import DataError
from devil.files import really_inside
from devil.storage import is_storage_error, storage, storage_error

END_MARK = 1024
"""A whole tar ends with at least two zero blocks of 512 bytes."""
BLOCK_BYTES = 1 << 20
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


def list_shards(pattern: str) -> list[str]:
    """Paths of tars, sorted, from a folder, a file, or a glob; local or any fsspec address.

    Raises:
        DataError: nothing matches.
        StorageError: the address cannot be reached.
    """
    return list_files(pattern, ".tar")


def shard_names(shards: Sequence[str]) -> list[str]:
    """Names of shards that go into one folder, in their order.

    Raises:
        DataError: two have the same.
    """
    return file_names(shards, ".tar")


def read_shard(path: str, inside: str | None = None) -> Iterator[Sample]:
    """Samples of one shard, in its order; `inside` as in `expected_samples`.

    Raises:
        DataError: the tar is missing, empty, or truncated, or holds fewer samples than its
            `_stats.json` says. All readable samples come before the error.
        StorageError: the file system fails.
    """
    count = 0
    try:
        with fsspec.open(path, "rb") as file:
            for sample in _samples(path, file):
                count += 1
                yield sample
    except FileNotFoundError as error:
        raise DataError(f"shard {path} does not exist.") from error
    except Exception as error:
        if is_storage_error(error):
            raise storage_error(path, error) from error
        raise DataError(
            f"shard {path} is damaged after {count} samples ({type(error).__name__}: {error}); "
            "fetch it again."
        ) from error
    expected = expected_samples(path, inside)
    if expected is not None and count < expected:
        raise DataError(
            f"shard {path} holds {count} samples, its statistics file says {expected}: it is "
            "truncated; fetch it again."
        )
    if not count:
        raise DataError(f"shard {path} is empty: it holds no samples.")


def _samples(path: str, file: Any) -> Iterator[Sample]:
    """Group consecutive members by key."""
    members: dict[str, bytes] = {}
    current = None
    tail: Any = _Tail(file)
    with tarfile.open(fileobj=tail, mode="r|", errorlevel=2) as tar:
        for member in tar:
            if not member.isfile():
                continue
            folder, _, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            again = suffix.lower() in members  # the same key twice, one row behind the other
            if current is not None and (key != current or again):
                yield _sample(current, path, members)
                members = {}
            current = key
            extracted = tar.extractfile(member)
            content = extracted.read() if extracted else b""
            if len(content) < member.size:
                raise tarfile.ReadError(f"{member.name} ends early")
            members[suffix.lower()] = content
        if current is not None:
            yield _sample(current, path, members)
        _check_nothing_follows(tar.fileobj)
    if tail.last.strip(b"\0") or len(tail.last) < END_MARK:
        # tarfile takes an archive that breaks off between members for a whole one.
        raise tarfile.ReadError("the end-of-archive mark is missing")


def _check_nothing_follows(stream: Any) -> None:
    """Read what is left: zeros, or members that nobody would miss.

    tarfile takes a broken header for the end, and stops at the first of several archives.
    """
    while block := stream.read(BLOCK_BYTES):
        if block.strip(b"\0"):
            raise tarfile.ReadError(
                "more follows where the archive seems to end: a header is broken, or several tars "
                "were put together (make one of them)"
            )


class _Tail:
    """Passes reads through and remembers the last bytes, where a whole tar holds zeros."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        content = self.file.read(size)
        self.last = (self.last + content[-END_MARK:])[-END_MARK:]
        return content


def _sample(key: str, path: str, members: Mapping[str, bytes]) -> Sample:
    record = _json(members.get("json"))
    image = next((members[s] for s in IMAGE_SUFFIXES if s in members), None)
    captions = record.get("captions")
    found = texts(captions if isinstance(captions, list) else [])
    found = found or texts([record.get("caption")])
    found = found or texts([members.get("txt", b"").decode("utf-8", "replace")])
    return Sample(key=unicode_text(key), source=path, image=image, captions=found, record=record)


def _json(content: bytes | None) -> dict[str, Any]:
    try:
        record = json.loads(content) if content else {}
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def expected_samples(path: str, inside: str | None = None) -> int | None:
    """Samples that the shard's `_stats.json` promises; None without such a file.

    Args:
        path: of the shard.
        inside: local folder, without links, that the file must really lie in, or else is not read.
    """
    address = path.removesuffix(".tar") + "_stats.json"
    if inside is not None and not really_inside(address, inside):
        return None
    with storage(address):
        fs, local = fsspec.core.url_to_fs(address)
        if not fs.exists(local):
            return None
        content = fs.cat_file(local)
    try:
        return int(json.loads(content)["successes"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
