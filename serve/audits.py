"""The audits of an application: folders below ``STATE/audits``, each with a job on the cluster.

A job (`serve.audit_job`) is independent of the application; its state is that of the folder, or,
where the folder does not tell, what Ray's job server knows of it.
"""

import logging
import os
import re
import secrets
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import serve
from serve.audit_folder import DAMAGED, REQUEST, Attempt, AuditFolder, End, Request
from serve.audit_schemas import AuditDocument, AuditOptions, State
from serve.jobs import Job, Jobs

ID = re.compile(r"\d{8}T\d{12}-[0-9a-f]{8}")
INCOMING, REMOVED = ".incoming-", ".removed-"
STALE_SECONDS = 6 * 3600
"""What lies unfinished for so long was left by an application that died; no archive is unpacked
for so long."""
FRUITLESS = 3
"""So often is an audit resumed by itself without one more part coming out."""
POLL_SECONDS = 0.2
KILLED = "The job was killed, or failed before it could say why; resume it, or see its log."

logger = logging.getLogger("ray.serve")


class UnknownAuditError(LookupError):
    """There is no audit of this id."""


def new_id() -> str:
    """An id that sorts by its time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}"


def now() -> str:
    """The time, as it is written down."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Audits:
    """The audits of an application. Methods block, and each that takes an id may raise
    `UnknownAuditError`; those that need the job server `JobServerError`."""

    def __init__(self, state: str, jobs: Jobs) -> None:
        self.root = Path(state).absolute() / "audits"
        self.jobs = jobs

    def incoming(self, name: str) -> Path:
        """A new folder for an audit that is not whole yet."""
        folder = self.root / f"{INCOMING}{name}"
        folder.mkdir(parents=True)
        return folder

    def add(self, request: Request, incoming: Path) -> None:
        """Make an audit of a folder of `incoming` and start its job; if it fails, nothing stays."""
        AuditFolder(incoming).write_request(request)
        folder = self.place(request.id)
        os.rename(incoming, folder)
        try:
            self.start(request.id)
        except BaseException:
            _remove(folder)
            raise

    def place(self, name: str) -> Path:
        """Where an audit of this id lies, or would."""
        return self.root / name

    def folder(self, name: str) -> AuditFolder:
        """An audit's folder."""
        if not self._is_audit(name):
            raise UnknownAuditError(name)
        return AuditFolder(self.place(name))

    def _is_audit(self, name: str) -> bool:
        return bool(ID.fullmatch(name)) and (self.place(name) / REQUEST).is_file()

    def names(self, before: str | None = None) -> Iterator[str]:
        """Ids, the newest first."""
        found = os.listdir(self.root) if self.root.is_dir() else []
        for name in sorted(found, reverse=True):
            if (before is None or name < before) and self._is_audit(name):
                yield name

    def start(self, name: str, *, by_itself: bool = False) -> None:
        """Start the next attempt."""
        folder = self.folder(name)
        last, parts = folder.attempt(), len(folder.part_names())
        stuck = by_itself and last is not None and parts <= last.parts
        attempt = Attempt(
            number=self._next_number(folder, last),
            submitted=now(),
            parts=parts,
            fruitless=last.fruitless + 1 if stuck and last else 0,
        )
        folder.write_attempt(attempt)
        # -P: nothing that lies in the head node's working folder is imported.
        program = [sys.executable, "-P", "-m", "serve.audit_job", str(folder.path)]
        log = shlex.quote(str(folder.path / f"job-{attempt.number}.log"))
        command = f"exec {shlex.join(program)} {attempt.number} >> {log} 2>&1"
        code = str(Path(serve.__file__).resolve().parents[1])
        self.jobs.submit(_job_name(name, attempt), command, {"PYTHONPATH": code})

    def _next_number(self, folder: AuditFolder, last: Attempt | None) -> int:
        """One more than the last attempt's, unless its job never came to be.

        It may have been asked for, and still be on its way: by the same name it is no second job.
        """
        if last is None:
            return 1
        began = folder.end() or self.jobs.find(_job_name(folder.path.name, last))
        return last.number + 1 if began else last.number

    def state(self, name: str) -> End:
        """How an audit goes, and why it failed."""
        folder = self.folder(name)
        attempt = folder.attempt()
        if folder.cancelled:
            return End("cancelled", None)
        if attempt is None:
            return End("stopped", None)
        if end := folder.end():
            return end
        job = self.jobs.find(_job_name(name, attempt))
        if job is None:
            return End("stopped", None)
        if job.state == "queued" or job.state == "running":
            return End(job.state, None)
        # A job writes its end down before it ends; for the others it is kept, for Ray forgets it.
        if not (end := folder.end()):
            folder.write_end(attempt.number, end := _end_of(job))
        return end

    def counts(self) -> Counter[str]:
        """How many audits are in each state."""
        found = Counter(dict.fromkeys(get_args(State), 0))
        for name in self.names():
            with suppress(UnknownAuditError, FileNotFoundError):  # removed this moment
                found[self._state_of(name).state] += 1
        return found

    def _state_of(self, name: str) -> End:
        """Its state; failed where its files are damaged, so that it does not stop the others."""
        try:
            return self.state(name)
        except DAMAGED:
            logger.exception("audit %s is damaged", name)
            return End("failed", "its files are damaged")

    def active(self) -> int:
        """How many audits have a job that has not ended."""
        counts = self.counts()
        return counts["queued"] + counts["running"]

    def is_lost(self, name: str) -> bool:
        """Whether an audit's job went away with its cluster, and another try may help."""
        folder = self.folder(name)
        try:
            attempt = folder.attempt()
            if folder.cancelled or folder.end():
                return False
        except DAMAGED:
            logger.exception("audit %s is damaged", name)
            return False
        if attempt is None:
            return True
        return attempt.fruitless < FRUITLESS and not self.jobs.find(_job_name(name, attempt))

    def delete(self, name: str, seconds: float) -> bool:
        """Stop an audit's job and remove its files; False: the job has not stopped in time."""
        folder = self.folder(name)
        folder.cancel()
        attempt = folder.attempt()
        if attempt is not None and not folder.end():
            if not self._stop(_job_name(name, attempt), seconds):
                return False
        _remove(folder.path)
        return True

    def _stop(self, job: str, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (found := self.jobs.find(job)) and found.state in ("queued", "running"):
            if time.monotonic() > deadline:
                return False
            self.jobs.stop(job)
            time.sleep(POLL_SECONDS)
        return True

    def sweep(self) -> None:
        """Remove what an application that died left half made or half removed."""
        for folder in self.root.iterdir() if self.root.is_dir() else ():
            gone = folder.name.startswith(REMOVED)
            if folder.name.startswith(INCOMING):
                with suppress(FileNotFoundError):  # whole this moment, and renamed
                    gone = time.time() - folder.lstat().st_mtime > STALE_SECONDS
            if gone:
                shutil.rmtree(folder, ignore_errors=True)

    def document(self, name: str, *, results: bool = True, begun: bool = False) -> AuditDocument:
        """An audit as clients see it; one that has `begun` just now is queued, whoever is asked."""
        folder = self.folder(name)
        request = folder.request()
        # Before the counts: what is finished is counted whole.
        state, problem = End("queued", None) if begun else self.state(name)
        return AuditDocument(
            id=name,
            state=state,
            created=request.created,
            title=request.title,
            model=request.model,
            version=request.version,
            images=request.images,
            options=AuditOptions(**request.options),
            progress=folder.progress(request, state),
            results=folder.results(f"/v1/audits/{name}/files", state) if results else None,
            problem=problem,
        )


def _end_of(job: Job) -> End:
    """That of a job which did not say how it ended."""
    if job.state == "stopped" or (job.state == "failed" and job.exit_code is None):
        return End("stopped", None)  # by an operator, or its node went away
    return End("failed", KILLED)


def _remove(folder: Path) -> None:
    """Remove an audit: first its name, for workers of a killed job may still be writing."""
    hidden = folder.with_name(f"{REMOVED}{folder.name}-{secrets.token_hex(4)}")
    os.rename(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _job_name(name: str, attempt: Attempt) -> str:
    return f"audit-{name}-{attempt.number}"
