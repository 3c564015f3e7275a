"""Which addresses audits may read: those under the roots that the operator allows.

A local root holds what really lies in it, after every link and `..` is followed; a bucket's root
holds addresses that begin with it, segment by segment, and have no spelling that could mean another
place. Links below a local address are left to the audit itself (`inside` of its options).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import fsspec

REFUSED = "images: not under a folder or bucket that this server lets audits read."
"""Says nothing of where the roots are, nor whether anything is at the address."""
WILDCARDS = "*?["


class RootError(ValueError):
    """An address is not under an allowed root, or has no plain meaning."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """An address that may be read."""

    address: str
    """Absolute path without links, or a bucket's address."""
    inside: str | None
    """Of a local path: the root, without links, in which everything below must really lie."""


class Roots:
    """The allowed roots."""

    def __init__(self, roots: Sequence[str]) -> None:
        """Take folders, which may not exist yet, and bucket prefixes such as `s3://bucket/photos`.

        Raises:
            ValueError: a root is relative, or names a whole kind of storage.
        """
        self.folders: list[Path] = []
        self.prefixes: list[str] = []
        for root in roots:
            if local := _local(root):
                self.folders.append(Path(os.path.abspath(local)))
                continue
            scheme, mark, rest = root.partition("://")
            known = mark and scheme in fsspec.available_protocols()
            if not known or not _plain(rest.rstrip("/")):
                raise ValueError(
                    f"audit root {root!r} is no absolute path and no bucket prefix; give such as "
                    "/data/photos or s3://bucket/photos."
                )
            self.prefixes.append(f"{scheme}://{rest.rstrip('/')}")

    def place(self, address: str) -> Place:
        """Where an address leads, if it may be read.

        Raises:
            RootError: it is under no root.
        """
        if any(ord(c) < 32 or ord(c) == 127 for c in address) or "::" in address:
            # fsspec chains file systems by "::".
            raise RootError(REFUSED)
        if local := _local(address):
            return self._folder(local)
        return self._bucket(address)

    def _folder(self, path: str) -> Place:
        try:
            real = Path(os.path.realpath(path))
        except (OSError, ValueError):
            raise RootError(REFUSED) from None
        for folder in () if "::" in str(real) else self.folders:
            root = Path(os.path.realpath(folder))
            if real.is_relative_to(root):
                return Place(address=str(real), inside=str(root))
        raise RootError(REFUSED)

    def _bucket(self, address: str) -> Place:
        scheme, mark, rest = address.partition("://")
        found = f"{scheme}://{rest.rstrip('/')}"
        under = any(found == p or found.startswith(f"{p}/") for p in self.prefixes)
        if not mark or not under or not _plain(rest.rstrip("/")):
            raise RootError(REFUSED)
        return Place(address=found, inside=None)


def _local(address: str) -> str | None:
    """The absolute path of an address on this machine's file systems; None: it is none."""
    if address.startswith("/"):
        return address
    scheme, mark, rest = address.partition("://")
    if mark and scheme.lower() in ("file", "local") and rest.startswith("/"):
        return rest
    return None


def _plain(path: str) -> bool:
    """Whether a bucket's path has one meaning: no `..`, written out or encoded, and no wildcard."""
    for text in (path, unquote(path)):
        if any(part in ("", ".", "..") for part in text.split("/")) or "\\" in text:
            return False
    return not any(mark in path for mark in (*WILDCARDS, "#"))
