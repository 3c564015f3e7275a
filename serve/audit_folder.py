"""One audit as a folder: what was asked, which attempt is the last, how it ended, what came out.

``request.json`` (never changes), ``attempt.json`` (the job that was started last), ``end.json``
(written by the job, or when its end was seen), ``cancelled`` (being deleted), ``pictures/`` (of an
upload), ``output/`` (of `pipelines.audit`) and ``job-<number>.log``. All is read again for each
answer, so nothing is lost with the application. Jobs are left to `audits`.
"""

import functools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import fsspec

from devil.audit_parts import Part, count, is_part, read_part
from devil.errors import DataError, StorageError
from devil.files import write_json
from devil.picture import MAX_PIXELS
from serve.audit_schemas import Progress, Results, State

REQUEST, ATTEMPT, END, CANCELLED = "request.json", "attempt.json", "end.json", "cancelled"
PICTURES, OUTPUT, ERRORS = "pictures", "output", "errors"
DAMAGED = (ValueError, TypeError, KeyError)
"""What reading a folder raises whose files are damaged, or of another version."""
REPORT, PLAN = "index.html", "plan.json"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an audit was asked to do."""

    id: str
    created: str
    title: str
    model: str
    """Its id."""
    version: str
    model_folder: str
    """The version's own folder."""
    images: str | None
    """As asked for; None: an upload."""
    address: str
    """Where the pictures are read."""
    inside: str | None
    """Folder that they must really lie in."""
    pictures: int | None = None
    """Of an upload."""
    ignored: int | None = None
    """Files of an upload that are no pictures."""
    options: dict[str, Any]
    max_pixels: int = MAX_PIXELS
    """Larger pictures are errors."""
    workers: int = 1
    """Actors of the job."""
    cpus: int = 1
    """Processors of each."""
    gpus: float = 0.0
    """GPUs of each."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The job that was started last."""

    number: int
    submitted: str
    parts: int = 0
    """That were there when it was submitted."""
    fruitless: int = 0
    """Attempts that the application made by itself since a part came out."""


class End(NamedTuple):
    """How an attempt ended."""

    state: State
    problem: str | None


class AuditFolder:
    """Reads and writes an audit's folder, which must exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.output = path / OUTPUT

    def request(self) -> Request:
        """What was asked."""
        return Request(**_read(self.path / REQUEST))

    def write_request(self, request: Request) -> None:
        """Write down what was asked; without it the folder is no audit."""
        write_json(self.path / REQUEST, asdict(request))

    def attempt(self) -> Attempt | None:
        """The last one; None: the application died before the first."""
        found = self.path / ATTEMPT
        return Attempt(**_read(found)) if found.is_file() else None

    def write_attempt(self, attempt: Attempt) -> None:
        """Write down that a job is about to be started."""
        self._write(ATTEMPT, asdict(attempt))

    def end(self) -> End | None:
        """How the last attempt ended; None: it has not, or nobody has seen it."""
        attempt, found = self.attempt(), self.path / END
        if attempt is None or not found.is_file():
            return None
        end = _read(found)
        return End(end["state"], end["problem"]) if end["attempt"] == attempt.number else None

    def write_end(self, attempt: int, end: End) -> None:
        """Write down how an attempt ended."""
        self._write(END, {"attempt": attempt, **end._asdict()})

    def _write(self, name: str, values: dict[str, Any]) -> None:
        """Write a file of JSON; an audit that was removed meanwhile does not come back."""
        write_json(self.path / name, values, make_folder=False)

    @property
    def cancelled(self) -> bool:
        """Whether it is being deleted."""
        return (self.path / CANCELLED).exists()

    def cancel(self) -> None:
        """Mark it as being deleted."""
        (self.path / CANCELLED).touch()

    def part_names(self, below: str = "") -> list[str]:
        """Files of finished parts."""
        folder = self.output / below
        return sorted(filter(is_part, os.listdir(folder))) if folder.is_dir() else []

    def progress(self, request: Request, state: State) -> Progress:
        """How many pictures are accounted for."""
        counts, plan = count(self._parts()), self.output / PLAN
        known = _read(plan)["pictures"] if plan.is_file() else request.pictures
        if known is None and state == "finished":
            known = counts.explained + counts.failed
        return Progress(pictures=known, ignored=request.ignored, **counts._asdict())

    def _parts(self) -> Iterator[Part]:
        for name in self.part_names():
            path = self.output / name
            try:
                found = path.stat()
                yield _part(str(path), found.st_mtime_ns, found.st_size)
            except (OSError, DataError, StorageError):
                # Replaced this moment, damaged or out of reach: the job will say so.
                continue

    def results(self, base: str, state: State) -> Results:
        """Addresses below `base` of the files that are there."""
        finished = state == "finished" and (self.output / REPORT).is_file()
        return Results(
            report=f"{base}/{REPORT}" if finished else None,
            parts=[f"{base}/{quote(name)}" for name in self.part_names()],
            errors=[f"{base}/{ERRORS}/{quote(name)}" for name in self.part_names(ERRORS)],
        )

    def result(self, name: str) -> Path | None:
        """A file that results can list; None: there is none of this name."""
        below, _, last = name.rpartition("/")
        folder = self.output / below
        if below not in ("", ERRORS) or not (is_part(last) or name == REPORT):
            return None
        if not folder.is_dir() or last not in os.listdir(folder):
            return None
        path = folder / last
        return path if path.is_file() and not path.is_symlink() else None


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@functools.lru_cache(maxsize=20_000)
def _part(path: str, changed: int, size: int) -> Part:
    """A part's footer; it is another part if the file was changed."""
    return read_part(fsspec.filesystem("file"), path)
