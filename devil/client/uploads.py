"""What an audit reads from here: an archive, or a folder that becomes one while it is sent.

A folder is written as a tar piece by piece, so that it takes neither memory nor disk; its length
is known beforehand, so that a service can refuse it before anything is sent.
"""

import io
import tarfile
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import BinaryIO, NamedTuple

from devil.data.webdataset import IMAGE_SUFFIXES
from devil.errors import DataError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
PIECE = 1 << 20
BLOCK = tarfile.BLOCKSIZE


class Upload(NamedTuple):
    """An archive that is sent."""

    name: str
    content: BinaryIO


def open_upload(path: str | PathLike[str]) -> Upload:
    """Open an archive, or a folder of pictures as one; to be closed by the caller.

    Raises:
        DataError: there is no such folder or archive, or no picture in it.
    """
    path = Path(path)
    if path.is_dir():
        return Upload("pictures.tar", PackedFolder(path))  # type: ignore[arg-type]
    ending = next((e for e in ARCHIVES if path.name.lower().endswith(e)), None)
    if ending is None:
        raise DataError(
            f"{path} is no folder here, and no archive; give a folder of pictures, or a "
            f"{', '.join(ARCHIVES)} file, or an address that the service reads as `images`."
        )
    try:
        return Upload(f"pictures{ending}", path.open("rb"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); give an archive.") from error


class Member(NamedTuple):
    """A file of a folder, and what stands before it in the tar."""

    path: Path
    size: int
    header: bytes


class PackedFolder(io.RawIOBase):
    """The pictures of a folder, searched deeply, read as a tar."""

    def __init__(self, folder: Path) -> None:
        """List the pictures.

        Raises:
            DataError: there are none, or they cannot be listed.
        """
        super().__init__()
        try:
            paths = sorted(p for p in folder.rglob("*") if _is_picture(p))
            self._members = [_member(path, path.relative_to(folder)) for path in paths]
        except OSError as error:
            raise DataError(f"{folder} cannot be read ({error}).") from error
        if not self._members:
            raise DataError(
                f"no pictures in {folder}; give a folder of {', '.join(IMAGE_SUFFIXES)} files."
            )
        lengths = (len(m.header) + m.size + _padding(m.size) for m in self._members)
        self.length = sum(lengths) + 2 * BLOCK
        self.seek(0)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """To its beginning and its end."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Begin anew, or go to the end."""
        at_end = (offset, whence) in [(0, io.SEEK_END), (self.length, io.SEEK_SET)]
        if not at_end and (offset, whence) != (0, io.SEEK_SET):
            raise io.UnsupportedOperation("only to the beginning or the end")
        self._position = self.length if at_end else 0
        self._pieces = iter(()) if at_end else self._all()
        self._left = memoryview(b"")
        return self._position

    def tell(self) -> int:
        """Bytes read so far."""
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """See `io.RawIOBase`.

        Raises:
            DataError: a picture has vanished, or changed its size.
        """
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        self._position += count
        return count

    def _all(self) -> Iterator[bytes]:
        for path, size, header in self._members:
            yield header
            try:
                with path.open("rb") as file:
                    for start in range(0, size, PIECE):
                        piece = file.read(min(PIECE, size - start))
                        if len(piece) != min(PIECE, size - start):
                            raise DataError(f"{path} became shorter while it was sent; try again.")
                        yield piece
            except OSError as error:
                raise DataError(f"{path} cannot be read ({error}); try again.") from error
            yield bytes(_padding(size))
        yield bytes(2 * BLOCK)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower().lstrip(".") in IMAGE_SUFFIXES and path.is_file()


def _member(path: Path, name: Path) -> Member:
    info = tarfile.TarInfo(name.as_posix())
    info.size = path.stat().st_size
    # Names that are no Unicode go as the bytes that they are.
    return Member(path, info.size, info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))


def _padding(size: int) -> int:
    return -size % BLOCK
