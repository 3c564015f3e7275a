"""Folders, globs or shards of pictures → units of work, and the pictures of a unit.

A picture's key is its path below the folder that was asked for, or its key in the shard. Whatever
cannot be read or decoded is a `Failure` in its place; the pictures after it still come.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import fsspec
from PIL import Image

from devil.data.sample import Failure, unicode_text
from devil.data.webdataset import IMAGE_SUFFIXES, list_shards, read_shard, shard_names
from devil.errors import DataError, ImageError
from devil.files import really_inside
from devil.picture import MAX_PIXELS, open_image
from devil.storage import in_threads

WILDCARDS = "*?["
PIXEL_BYTES = 8
"""A pixel of an uncompressed 16-bit RGBA picture; longer files are not read."""


Sizes = Mapping[str, int | None]
"""Bytes of files by their paths; None: unknown."""


class Unit(NamedTuple):
    """A piece of work: one shard, or some picture files."""

    name: str
    paths: tuple[str, ...]
    files: tuple[str, ...]
    """The paths below the folder that was asked for."""
    sizes: tuple[int | None, ...] = ()
    """Bytes of each file as it was listed; None, or no sizes: unknown."""

    @classmethod
    def from_json(cls, text: str) -> "Unit":
        """A unit as `json.dumps` has written it."""
        name, *rest = json.loads(text)
        return cls(name, *map(tuple, rest))


class Picture(NamedTuple):
    """One picture of a unit."""

    key: str
    source: str
    """Path of the file or shard."""
    image: Image.Image


def list_units(
    images: str, *, files_per_unit: int = 8, done: Mapping[str, Sequence[str]] | None = None
) -> list[Unit]:
    """Units from a folder of pictures or of shards (searched deeply), a glob, or one file.

    Args:
        images: a local path, or any fsspec address.
        files_per_unit: pictures of a unit, for those that are no shard.
        done: `files` of the units that are finished, by name. Those units stay, less the files that
            are gone, and come first; the other files make units with names of their own.

    Raises:
        DataError: nothing matches, there are both pictures and shards, or two shards have the same
            name.
    """
    fs, path = fsspec.core.url_to_fs(images)
    if images.endswith(".tar"):
        shards = list_shards(images)
        lengths = in_threads(lambda shard: fs.info(shard)["size"], shards)
        return _shard_units(shards, _root(images), dict(zip(shards, lengths, strict=True)))
    found = (fs.find if fs.exists(path) else fs.glob)(path, detail=True)
    paths = {
        name: info.get("type", "file")
        for name, info in sorted(found.items())
        if name.endswith(".tar") or name.lower().rpartition(".")[2] in IMAGE_SUFFIXES
    }
    # Links have a type of their own, wherever they point.
    paths = [p for p, t in paths.items() if t == "file" or (t != "directory" and not fs.isdir(p))]
    address = fs.unstrip_protocol if "://" in images else str
    sizes = {address(p): found[p].get("size") for p in paths}
    paths = list(sizes)
    shards = [p for p in paths if p.endswith(".tar")]
    paths = [p for p in paths if not p.endswith(".tar")]
    if shards and paths:
        raise DataError(
            f"{images} holds shards ({shards[0]}, ...) and pictures ({paths[0]}, ...); give a glob "
            f"of the shards, {images.rstrip('/')}/*.tar, and keep the pictures in another folder."
        )
    if shards:
        return _shard_units(shards, _root(images), sizes)
    if not paths:
        raise DataError(
            f"no pictures at {images}; give a folder or glob of {', '.join(IMAGE_SUFFIXES)} "
            "files, or webdataset shards."
        )
    return _file_units(_below(paths, _root(images)), sizes, files_per_unit, done or {})


def _shard_units(shards: Sequence[str], root: str, sizes: Sizes) -> list[Unit]:
    files = _below(shards, root)
    names = shard_names(shards)
    return [
        Unit(name, (path,), (file,), (sizes[path],))
        for name, (file, path) in zip(names, files.items(), strict=True)
    ]


def _file_units(
    paths: Mapping[str, str], sizes: Sizes, count: int, done: Mapping[str, Sequence[str]]
) -> list[Unit]:
    def unit(name: str, files: tuple[str, ...]) -> Unit:
        found = tuple(left.pop(file) for file in files)
        return Unit(name, found, files, tuple(sizes[path] for path in found))

    units = []
    left = dict(paths)
    for name, files in sorted(done.items()):
        here = tuple(file for file in files if file in left)
        if here:
            units.append(unit(name, here))
    files, number = list(left), 0
    for start in range(0, len(files), count):
        while f"{number:05d}" in done:
            number += 1
        units.append(unit(f"{number:05d}", tuple(files[start : start + count])))
        number += 1
    return units


def _root(images: str) -> str:
    """The folder that keys are below: the one given, or the last one before a wildcard."""
    fs, path = fsspec.core.url_to_fs(images)
    fixed = min((path.index(mark) for mark in WILDCARDS if mark in path), default=None)
    if not fs.isdir(path):
        path = path[:fixed].rpartition("/")[0]
    return fs.unstrip_protocol(path) if "://" in images else path


def _below(paths: Sequence[str], root: str) -> dict[str, str]:
    """Paths by what follows the root in them."""
    root = root.rstrip("/") + "/"
    return {unicode_text(path.removeprefix(root)): path for path in paths}


def pictures(
    unit: Unit, *, inside: str | None = None, max_pixels: int = MAX_PIXELS
) -> Iterator[Picture | Failure]:
    """A unit's pictures, decoded, in order; what cannot be read or decoded says why.

    Args:
        unit: of `list_units`.
        inside: local folder, without links, that files must really lie in; others are not opened.
        max_pixels: larger pictures are not decoded, and files of over `PIXEL_BYTES` for each pixel
            are not read.
    """
    for path, file in zip(unit.paths, unit.files, strict=True):
        if inside is not None and not really_inside(path, inside):
            error = DataError("a link leads out of the folder that may be read")
            yield Failure.of(file, path, "read", error)
        elif path.endswith(".tar"):
            yield from _of_shard(path, inside, max_pixels)
        else:
            yield _of_file(path, file, max_pixels)


def _of_shard(path: str, inside: str | None, max_pixels: int) -> Iterator[Picture | Failure]:
    try:
        for sample in read_shard(path, inside):
            yield _decoded(sample.key, path, sample.image or b"", max_pixels)
    except (DataError, OSError) as error:
        yield Failure.of("", path, "read", error)


def _of_file(path: str, key: str, max_pixels: int) -> Picture | Failure:
    try:
        fs, name = fsspec.core.url_to_fs(path)
        _check_length(fs.info(name)["size"] or 0, max_pixels)
        content = fs.cat_file(name)
    except ImageError as error:
        return Failure.of(key, path, "decode", error)
    except Exception as error:  # each file system raises kinds of its own
        return Failure.of(key, path, "read", error)
    return _decoded(key, path, content, max_pixels)


def _check_length(length: int, max_pixels: int) -> None:
    most = PIXEL_BYTES * max_pixels
    if length > most:
        raise ImageError(
            f"the file is too long, {length:,} bytes; pictures of at most {max_pixels:,} pixels "
            f"have up to {most:,}. Make it smaller, or raise max_pixels."
        )


def _decoded(key: str, source: str, content: bytes, max_pixels: int) -> Picture | Failure:
    try:
        return Picture(key, unicode_text(source), open_image(content, max_pixels=max_pixels))
    except ImageError as error:
        return Failure.of(key, source, "decode", error)
