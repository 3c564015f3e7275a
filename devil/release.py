"""Which version of a model is current: `current.json`, the switch in a folder of versions.

``current.json`` names the current version and the good ones before it; ``versions/<name>/`` are
model folders. The file is replaced in one step, so readers see the old release or the new one.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from devil.errors import ModelFolderError
from devil.files import write_json

CURRENT, VERSIONS = "current.json", "versions"
NAME = re.compile(r"\d{4,}-[0-9a-f]{8}")
"""A version's number and the first digits of its weights' digest."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """What `current.json` holds."""

    current: str
    """Name of the version in use."""
    earlier: tuple[str, ...] = ()
    """Versions before it that were good, the oldest first."""
    withdrawn: tuple[str, ...] = ()
    """Versions that were current and rolled back; they are not released again by themselves."""
    when: str
    """When the switch was moved."""
    why: Mapping[str, Any] = field(default_factory=dict)
    """Scores and verdict, or the reason of a rollback."""

    def names(self) -> tuple[str, ...]:
        """The versions that are good, the oldest first, the current one last."""
        return (*self.earlier, self.current)


def release_file(root: str | PathLike[str]) -> Path:
    """Where the switch of a folder of versions is."""
    return Path(root) / CURRENT


def read_release(root: str | PathLike[str]) -> Release | None:
    """The release of a folder of versions; None if nothing was released there.

    Raises:
        ModelFolderError: `current.json` is corrupt.
    """
    path = release_file(root)
    try:
        values = json.loads(path.read_text())
        lists = {name: tuple(values[name]) for name in ("earlier", "withdrawn")}
        release = Release(**{**values, **lists})
        for name in (*release.names(), *release.withdrawn):
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no version")
        return release
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ModelFolderError(
            f"{path} does not say which version is current ({type(error).__name__}: {error}); "
            f"give a version's own folder, {Path(root) / VERSIONS}/NAME."
        ) from error


def write_release(root: str | PathLike[str], release: Release) -> None:
    """Move the switch."""
    write_json(release_file(root), asdict(release))


def version_folder(root: str | PathLike[str], name: str) -> Path:
    """The model folder of a version, with no link in its path: its own paths are relative to it."""
    return Path(root).resolve() / VERSIONS / name
