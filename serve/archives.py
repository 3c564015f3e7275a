"""An uploaded zip or tar → a folder of its pictures, or one clear refusal.

Archives are hostile until they are unpacked: nothing is written outside the folder, links and
devices are refused, and what counts is the bytes that come out, not those that an entry declares.
Archives inside the archive, and whatever is no picture by its name, are left out and counted.
Decoding is left to the audit, which reports each picture that cannot be read.
"""

import gzip
import re
import stat
import struct
import tarfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from devil.data.webdataset import END_MARK, IMAGE_SUFFIXES

CHUNK = 1 << 18
HEADER_BYTES = 1 << 20
"""No header of a tar's entry is longer."""
DIRECTORY_BYTES = 160
"""What an entry may take of a zip's directory, on average: zipfile reads it in one piece."""
SECONDS = 1800.0
"""An archive that takes longer is refused: 100,000 pictures at 18 ms each do not."""
NAME_BYTES, PATH_BYTES, DEPTH = 240, 1000, 32
DIRECTORY_MARK = b"PK\x01\x02"
"""Before each entry in a zip's directory."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Others can ask for gigabytes of memory before the first byte comes out."""
ENCRYPTED = 1
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    gzip.BadGzipFile,
    EOFError,
    NotImplementedError,
    ValueError,
    OverflowError,
    RuntimeError,
)
"""What the readers raise on bytes that are no archive."""


class ArchiveError(Exception):
    """An archive cannot be taken; the message names the entry."""


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """How much may come out of one archive."""

    pictures: int
    entries: int
    """Pictures and everything else, folders too."""
    bytes: int


class Unpacked(NamedTuple):
    """What came out of an archive."""

    pictures: int
    ignored: int
    """Files that are no pictures by their names."""


class _Entry(NamedTuple):
    name: str
    stream: IO[bytes] | None
    """None: a folder."""


def unpack(archive: IO[bytes], folder: Path, limits: ArchiveLimits) -> Unpacked:
    """Write an archive's pictures below a folder, which is made; on an error it may hold some.

    Args:
        archive: a zip, a tar, or a tar in gzip, open for reading in any order.
        folder: must not exist.
        limits: of all that comes out.

    Raises:
        ArchiveError: it is none of these, damaged, too large, takes too long, or holds a link or a
            bad name.
        OSError: the disk is full.
    """
    folder.mkdir(parents=True)
    writer = _Writer(folder, limits)
    try:
        for entry in _entries(archive, limits):
            writer.take(entry)
    except ArchiveError:
        raise
    except DAMAGED as error:
        raise ArchiveError(
            f"the archive is damaged, or none that can be read ({type(error).__name__})"
        ) from error
    if not writer.pictures:
        raise ArchiveError(
            f"the archive holds no pictures (of {writer.ignored} files); allowed are "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    return Unpacked(writer.pictures, writer.ignored)


def _entries(archive: IO[bytes], limits: ArchiveLimits) -> Iterator[_Entry]:
    """The files of an archive, each open until the next is asked for."""
    start = archive.read(4)
    archive.seek(0)
    bounded = _Bounded(archive, limits)
    if start[:2] == b"PK":
        return _zip_entries(bounded, limits)
    if start[:2] == b"\x1f\x8b":
        return _tar_entries(gzip.GzipFile(fileobj=bounded), limits)  # type: ignore[arg-type]
    return _tar_entries(bounded, limits)


class _Writer:
    """Puts entries below a folder, and stops at the limits."""

    def __init__(self, folder: Path, limits: ArchiveLimits) -> None:
        self.folder, self.limits = folder, limits
        self.entries = self.pictures = self.ignored = self.bytes = 0
        self.folders: set[PurePosixPath] = set()
        self.numbers: Counter[Path] = Counter()

    def take(self, entry: _Entry) -> None:
        self.entries += 1
        if self.entries > self.limits.entries:
            raise ArchiveError(f"the archive holds more than {self.limits.entries:,} entries")
        if entry.stream is None:
            return
        name = plain_name(entry.name)
        picture = is_picture(name)
        self.pictures += picture
        self.ignored += not picture
        if self.pictures > self.limits.pictures:
            raise ArchiveError(f"the archive holds more than {self.limits.pictures:,} pictures")
        if picture:
            self._write(entry.name, entry.stream, name)

    def _write(self, as_given: str, stream: IO[bytes], name: PurePosixPath) -> None:
        path = self.folder / name
        if name.parent not in self.folders:
            self.folders.update(name.parents)
        if len(self.folders) > self.limits.entries:
            raise ArchiveError(f"the archive holds more than {self.limits.entries:,} folders")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(self._free(path), "xb")
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise ArchiveError(f"{shown(as_given)} is a file and a folder at once") from None
        with file:
            while chunk := stream.read(CHUNK):
                self.bytes += len(chunk)
                if self.bytes > self.limits.bytes:
                    raise ArchiveError(
                        f"the archive holds more than {self.limits.bytes:,} bytes of pictures"
                    )
                file.write(chunk)

    def _free(self, path: Path) -> Path:
        """A name that is not taken: of two entries with one name, both are kept."""
        found = path
        while found.exists():
            if found.is_dir():
                raise IsADirectoryError(found)
            self.numbers[path] += 1  # remembered, for thousands may have one name
            found = path.with_name(f"{path.stem}.{self.numbers[path] + 1}{path.suffix}")
        return found


def plain_name(name: str) -> PurePosixPath:
    """An entry's name as a path below the folder.

    Raises:
        ArchiveError: it is absolute, climbs, is too long, or holds control characters.
    """
    # Archives made on Windows; a drive's letter makes such a path absolute.
    path = name.replace("\\", "/")
    # Bytes that are no UTF-8 are written as \xe9.
    path = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:/", path) or not parts:
        raise ArchiveError(f"{shown(name)} leads out of the archive")
    if CONTROL.search(path):
        raise ArchiveError(f"{shown(name)} has control characters in its name")
    longest = max(len(part.encode()) for part in parts)
    if longest > NAME_BYTES or len(path.encode()) > PATH_BYTES or len(parts) > DEPTH:
        raise ArchiveError(f"{shown(name)} has too long a name")
    return PurePosixPath(*parts)


def is_picture(path: PurePosixPath) -> bool:
    """Whether a name is a picture's, and not that of the notes which macOS puts beside each."""
    if path.name.startswith("._") or path.parts[0] == "__MACOSX":
        return False
    return path.name.lower().rpartition(".")[2] in IMAGE_SUFFIXES and "." in path.name


def shown(name: str) -> str:
    """An entry's name as it may stand in a message."""
    return repr(name[:100])


def _zip_entries(archive: "_Bounded", limits: ArchiveLimits) -> Iterator[_Entry]:
    with zipfile.ZipFile(archive) as found:  # type: ignore[arg-type]
        for info in found.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if not info.filename:
                raise ArchiveError("an entry has no name")
            if not 0 <= info.header_offset < found.start_dir:  # a file cannot be sought there
                raise ArchiveError(f"{shown(info.filename)} lies outside of the archive")
            if info.is_dir():
                yield _Entry(info.filename, None)
                continue
            if kind not in (0, stat.S_IFREG):
                raise ArchiveError(f"{shown(info.filename)} is a link or a device")
            if info.flag_bits & ENCRYPTED:
                raise ArchiveError(f"{shown(info.filename)} is encrypted")
            if info.compress_type not in METHODS:
                raise ArchiveError(
                    f"{shown(info.filename)} is compressed in another way than deflate"
                )
            with found.open(info) as stream:
                yield _Entry(info.filename, stream)


class _Bounded:
    """Refuses single reads that an honest archive does not need, and any once the time is over.

    Here, and not where something comes out: of thousands of empty gzips nothing does.
    """

    def __init__(self, file: IO[bytes], limits: ArchiveLimits) -> None:
        self.file, self.limits = file, limits
        self.longest = max(HEADER_BYTES, DIRECTORY_BYTES * limits.entries)
        self.until = time.monotonic() + SECONDS
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self.close = lambda: None

    def read(self, size: int = -1) -> bytes:
        if size > self.longest:
            raise ArchiveError("the archive's list of entries, or a header in it, is too long")
        if time.monotonic() > self.until:
            raise ArchiveError(f"the archive is not unpacked after {SECONDS:g} s; send it in parts")
        content = self.file.read(size)
        # A zip's directory alone is read in so long a piece; zipfile makes objects of all of it.
        if size > HEADER_BYTES and content.count(DIRECTORY_MARK) > self.limits.entries:
            raise ArchiveError(f"the archive holds more than {self.limits.entries:,} entries")
        return content


def _tar_entries(archive: "_Bounded | gzip.GzipFile", limits: ArchiveLimits) -> Iterator[_Entry]:
    stream = _Forward(archive, limits.bytes + 2 * 1024 * limits.entries)
    with tarfile.open(fileobj=stream, mode="r:", errorlevel=2) as found:  # type: ignore[arg-type]
        while (member := found.next()) is not None:
            found.members.clear()  # else it keeps them all
            if member.isdir():
                yield _Entry(member.name, None)
                continue
            if not member.isreg() or member.issparse():
                raise ArchiveError(f"{shown(member.name)} is a link or a device, or is sparse")
            content = found.extractfile(member)
            assert content is not None
            yield _Entry(member.name, content)
    stream.check_end()


class _Forward:
    """A stream that is read once, as tarfile wants to see it: with places, and bounded reads.

    Compressed streams can go back only by beginning again; tarfile goes back by one byte.
    """

    def __init__(self, file: "_Bounded | gzip.GzipFile", most: int) -> None:
        self.file, self.most = file, most
        self.place = self.read_to = 0
        self.last = b""
        self.tail = b""

    def tell(self) -> int:
        return self.place

    def seek(self, place: int) -> int:
        while place > self.read_to:
            if not self._more(min(CHUNK, place - self.read_to)):
                break
        if place < self.read_to - len(self.last):
            raise tarfile.ReadError("the archive goes back")
        self.place = place
        return place

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= HEADER_BYTES:
            raise ArchiveError("a header in the archive is too long")
        behind = self.read_to - self.place
        again = self.last[len(self.last) - behind :][:size] if behind > 0 else b""
        new = self._more(size - len(again)) if self.place + len(again) == self.read_to else b""
        self.place += len(again) + len(new)
        return again + new

    def _more(self, size: int) -> bytes:
        content = self.file.read(size) if size else b""
        self.read_to += len(content)
        if self.read_to > self.most:
            raise ArchiveError(f"the archive holds more than {self.most:,} bytes")
        self.last = (self.last + content)[-1:]
        self.tail = (self.tail + content[-END_MARK:])[-END_MARK:]
        return content

    def check_end(self) -> None:
        """Refuse an archive that breaks off, or goes on after its end: tarfile would not say so."""
        blank = True
        while content := self._more(CHUNK):
            blank = blank and not content.strip(b"\0")
        if not blank or self.tail.strip(b"\0") or len(self.tail) < END_MARK:
            raise ArchiveError("the archive breaks off, or goes on after its end")
