"""Ten thousand small pictures as the web gives them: corrupt, cut, empty, doubled, unicode."""

import functools
import tarfile
from pathlib import Path
from typing import NamedTuple

from tiny import CAPTIONS, encoded, picture, sample_members, write_tar

SIDE = 32
TRUNCATED, EMPTY = (13, 47, 92), 60
DOUBLED = (5, 25, 45, 65, 85)


class DirtyShard(NamedTuple):
    """What was put into a shard."""

    keys: list[str]
    """Of its rows, in order; a doubled one twice."""
    corrupt: set[str]
    whole: int
    """Rows that lie whole before the place where the shard breaks off; of others, all."""


@functools.cache
def pictures() -> list[bytes]:
    """Encoded pictures in all formats."""
    kinds = ("JPEG", "PNG", "WEBP")
    return [
        encoded(picture(caption, side=SIDE, seed=i), kinds[i % 3])
        for i, caption in enumerate(CAPTIONS[:24])
    ]


def dirty_shards(folder: Path, *, shards: int = 100, rows: int = 100) -> dict[str, DirtyShard]:
    """Write the shards; returns what lies in each, by its name."""
    return {f"{index:05d}": _shard(folder, index, rows) for index in range(shards)}


def _shard(folder: Path, index: int, rows: int) -> DirtyShard:
    if index == EMPTY:
        write_tar(folder / f"{index:05d}.tar", [])
        return DirtyShard([], set(), 0)
    keys = [_key(index, row) for row in range(rows)]
    if index in DOUBLED:
        keys[rows // 2] = keys[0]
    corrupt = {keys[(index * 7 + 31) % (rows // 2) + 1]}
    members: list[tuple[str, bytes]] = []
    for row, key in enumerate(keys):
        image = pictures()[(index + row) % len(pictures())]
        broken = image[: len(image) // 2] if index % 2 else b"no picture"
        content = broken if key in corrupt else image
        members += sample_members(key, [CAPTIONS[row % len(CAPTIONS)]], content)
    path = folder / f"{index:05d}.tar"
    write_tar(path, members)
    whole = len(keys)
    if index in TRUNCATED:
        with tarfile.open(path) as tar:
            ends = [member.offset_data + member.size for member in tar.getmembers()][2::3]
        cut = ends[rows // 2] + 700
        path.write_bytes(path.read_bytes()[:cut])
        whole = sum(end <= cut for end in ends)
    return DirtyShard(keys, corrupt, whole)


def _key(index: int, row: int) -> str:
    """Every tenth key has letters from elsewhere."""
    return f"{index:05d}{row:04d}" + ("_été_雪_ключ" if row % 10 == 3 else "")
