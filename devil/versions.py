"""A folder of model versions, one of them current: add, promote, roll back, prune.

A version's name is a number and the first digits of its weights' digest. `DeViL.from_pretrained`
on the folder loads the current version. What is good enough is decided elsewhere
(`devil.evaluation.gate`).
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

from devil.backbones.base import weights_digest
from devil.errors import ConfigError, ModelFolderError
from devil.folder import check_folder
from devil.lock import Lock
from devil.model import DeViL
from devil.release import (
    NAME,
    VERSIONS,
    Release,
    read_release,
    release_file,
    version_folder,
    write_release,
)

DIGITS = 8
"""Digits of the weights' digest in a version's name."""


class ModelVersions:
    """The versions in one folder, which is made when the first is added."""

    def __init__(self, root: str | PathLike[str]) -> None:
        """Name the folder."""
        self.root = Path(root).resolve()

    def current(self) -> Release | None:
        """What is released; None if nothing is yet.

        Raises:
            ModelFolderError: `current.json` is corrupt.
        """
        return read_release(self.root)

    def check_current(self) -> None:
        """Find out whether the current version, if there is one, can be compared with.

        Raises:
            ModelFolderError: it is missing or corrupt; says how to go on.
        """
        release = self.current()
        if release is None:
            return
        try:
            self._check(release.current)
        except ModelFolderError as error:
            raise ModelFolderError(
                f"{error} It is the current version: put its folder back, go back to an earlier "
                f"one (--rollback), or remove {release_file(self.root)} to begin anew."
            ) from error

    def folder(self, name: str) -> Path:
        """The model folder of a version."""
        return version_folder(self.root, name)

    def names(self) -> list[str]:
        """All versions that are stored, the oldest first."""
        folders = (self.root / VERSIONS).glob("*") if (self.root / VERSIONS).is_dir() else ()
        return sorted((f.name for f in folders if NAME.fullmatch(f.name)), key=_number)

    def find(self, weights: str) -> str | None:
        """The version, stored or once released, whose weights have this digest."""
        release = self.current()
        released = (*release.names(), *release.withdrawn) if release else ()
        for name in (*self.names(), *released):
            if name.endswith(f"-{weights[:DIGITS]}"):
                return name
        return None

    def add(self, model: DeViL) -> str:
        """Store a model as a version, unless it is there; nothing is released by that.

        Returns:
            The version's name.
        """
        weights = weights_digest(model.translator)
        name = self.find(weights)
        if name is None:
            release = self.current()
            known = [*self.names(), *(release.names() if release else ())]
            number = 1 + max(map(_number, known), default=0)
            name = f"{number:04d}-{weights[:DIGITS]}"
        if not self.folder(name).is_dir():
            model.save_pretrained(self.folder(name))
        return name

    def promote(self, name: str, *, instead_of: str | None, why: Mapping[str, Any]) -> Release:
        """Make a stored version the current one.

        Args:
            name: The version.
            instead_of: What it was compared with; None: nothing was current.
            why: Plain values kept with the release.

        Raises:
            ModelFolderError: the version is missing or corrupt, or another one than `instead_of`
                is current by now.
            LockError: the switch is being moved by somebody else.
        """
        self._check(name)
        with self._switch():
            release = self.current()
            found = release.current if release else None
            if found == name:
                assert release is not None
                return release
            if found != instead_of:
                raise ModelFolderError(
                    f"{name} was compared with {instead_of}, and {found} is the current version of "
                    f"{self.root} by now; compare it with that one."
                )
            earlier = [n for n in (release.names() if release else ()) if n != name]
            withdrawn = [n for n in (release.withdrawn if release else ()) if n != name]
            return self._write(
                Release(
                    current=name,
                    earlier=tuple(earlier),
                    withdrawn=tuple(withdrawn),
                    when=_now(),
                    why=why,
                )
            )

    def rollback(self) -> Release:
        """Make the last good version before the current one current again.

        Raises:
            ModelFolderError: there is none, or it is missing or corrupt.
            LockError: the switch is being moved by somebody else.
        """
        with self._switch():
            release = self.current()
            if release is None or not release.earlier:
                raise ModelFolderError(
                    f"{self.root} has no version to go back to: "
                    f"{release.current if release else 'nothing'} is current, and none was before."
                )
            *earlier, name = release.earlier
            self._check(name)
            return self._write(
                replace(
                    release,
                    current=name,
                    earlier=tuple(earlier),
                    withdrawn=(*release.withdrawn, release.current),
                    when=_now(),
                    why={"rolled_back": release.current},
                )
            )

    def prune(self, keep: int) -> None:
        """Remove all versions but the newest good ones.

        Args:
            keep: How many stay; the current one and the one before are always among them.

        Raises:
            ConfigError: `keep` is below 2.
        """
        if keep < 2:
            raise ConfigError(f"keep is {keep}; allowed: at least 2, current and the one before.")
        with self._switch():
            release = self.current()
            if release is None:
                return
            kept = release.names()[-keep:]
            if kept != release.names():
                self._write(replace(release, earlier=kept[:-1]))
            for folder in (self.root / VERSIONS).iterdir():
                if folder.name not in kept:
                    _remove(folder)

    def _check(self, name: str) -> None:
        folder = self.folder(name)
        if not folder.is_dir():
            raise ModelFolderError(
                f"{self.root} has no version {name}; it has: {', '.join(self.names()) or 'none'}."
            )
        check_folder(folder)

    def _switch(self) -> Lock:
        """Held while the switch is read and moved, which takes a moment."""
        return Lock(self.root / "switch.lock", stale_minutes=1)

    def _write(self, release: Release) -> Release:
        write_release(self.root, release)
        return release


def _number(name: str) -> int:
    return int(name.partition("-")[0])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _remove(folder: Path) -> None:
    """Hide, then remove: half a version is never seen under its name."""
    hidden = Path(tempfile.mkdtemp(prefix=".removed.", dir=folder.parent))
    os.rename(folder, hidden / folder.name)
    shutil.rmtree(hidden)
