"""Files that are either whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """A new file to write to, which stands at `path` once the block has ended without an error.

    A failure leaves what was there before, and nothing else. The folder must exist.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    file = open(temporary, "xb")  # as the process's mask says, which only setting it would tell
    try:
        with file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: str | PathLike[str], content: bytes) -> Path:
    """Write all of a file's content, as `replacing` does; returns the path."""
    with replacing(path) as file:
        file.write(content)
    return Path(path)


def write_json(
    path: str | PathLike[str], values: Mapping[str, Any], *, make_folder: bool = True
) -> Path:
    """Write a JSON object, indented, as `write_atomically` does; makes the folder if allowed."""
    if make_folder:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


def really_inside(path: str | PathLike[str], folder: str | PathLike[str]) -> bool:
    """Whether a path lies in a folder when links are followed; the folder's path has none."""
    return Path(os.path.realpath(path)).is_relative_to(folder)
