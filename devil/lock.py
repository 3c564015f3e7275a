"""A lock as a file, for programs that must not run twice at once, on one machine or on several.

The file says who holds it. Its holder touches it again and again while it works, so one that was
left behind is recognised: at once on the machine of the holder, whose process is gone, and
elsewhere when it has not been touched for some minutes. It is then taken over, and that is said.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path

from devil.errors import ConfigError, LockError
from devil.storage import storage

logger = logging.getLogger(__name__)

BEATS = 10
"""How often a holder touches its file within the time after which others give it up."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems without hard links say."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock."""

    host: str
    system: str
    """Boot and process namespace: where a process number means what it says."""
    pid: int
    process_started: str
    """Start of the process in clock ticks, for numbers are given again."""
    since: str
    """When it took the lock."""
    token: str
    """Unlike that of any other holding."""

    @classmethod
    def here(cls) -> "Holder":
        """This process, taking a lock now."""
        return cls(
            host=socket.gethostname(),
            system=_system(),
            pid=os.getpid(),
            process_started=_process_started(os.getpid()),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            token=uuid.uuid4().hex,
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    def is_local(self) -> bool:
        """Whether this process can see the holder's."""
        return bool(self.system) and (self.host, self.system) == (socket.gethostname(), _system())

    def is_running(self) -> bool:
        """Whether the holder's process, which `is_local`, still runs."""
        started = _process_started(self.pid)
        return bool(started) and started == self.process_started


class Lock:
    """Held within `with Lock(path): ...`; whoever comes second gets a `LockError`."""

    def __init__(
        self, path: str | PathLike[str], *, stale_minutes: float = 10, patient: bool = False
    ) -> None:
        """Name the file; nothing is taken yet.

        Args:
            path: the file; its folder is made. All machines must see the same one.
            stale_minutes: a holder on another machine that has been silent for longer is gone.
            patient: wait for a holder on another machine to give a sign of life, or to be gone,
                as where a lost job is started anew at once; False: it is taken to live until then.

        Raises:
            ConfigError: `stale_minutes` is not above 0.
        """
        if not stale_minutes > 0:
            raise ConfigError(f"stale_minutes is {stale_minutes!r}; allowed: above 0.")
        self.path = Path(path)
        self.stale_seconds = 60 * stale_minutes
        self.patient = patient
        self._holder: Holder | None = None
        self._released = threading.Event()

    def __enter__(self) -> "Lock":
        """Take the lock.

        Raises:
            LockError: somebody holds it.
            StorageError: the file cannot be written.
        """
        with storage(str(self.path)):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            holder = Holder.here()
            while not self._create(holder):
                if self.patient:
                    self._watch()
                self._clear_stale()
        self._holder = holder
        self._released.clear()
        threading.Thread(target=self._beat, name="lock", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        if self._is_ours():
            self.path.unlink(missing_ok=True)
        self._holder = None

    def check(self) -> None:
        """Make sure, before something that cannot be undone, that the lock is still held.

        Raises:
            LockError: it was taken over, because this process had been silent for too long.
        """
        if not self._is_ours():
            raise LockError(
                f"{self.path} was lost while it was held here: now {self._read() or 'nobody'} "
                "holds it. Start again when that has ended."
            )

    def _create(self, holder: Holder) -> bool:
        """Whether the file could be made; a link appears with all its content, and only once."""
        temporary = self.path.with_name(f".{self.path.name}.{holder.token}")
        content = json.dumps(asdict(holder), indent=2) + "\n"
        try:
            temporary.write_text(content)
            try:
                os.link(temporary, self.path)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                with open(self.path, "x") as file:  # for a moment without its content
                    file.write(content)
            return True
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)

    def _watch(self) -> None:
        """Wait until a holder on another machine stirs, ends, or has been silent for too long."""
        holder = self._read()
        if holder is not None and holder.is_local():
            return
        with contextlib.suppress(FileNotFoundError):
            touched = self.path.stat().st_mtime_ns
            logger.warning("%s is held by %s; waiting for a sign of life", self.path, holder)
            while self.path.stat().st_mtime_ns == touched:
                if self._silent_seconds() >= self.stale_seconds:
                    return
                time.sleep(min(1.0, self.stale_seconds / BEATS))

    def _clear_stale(self) -> None:
        """Remove the file if its holder is gone.

        Raises:
            LockError: the holder lives.
        """
        # Of several that find the same stale lock the second must not remove what the first makes.
        with open(self.path.with_name(f".{self.path.name}.guard"), "w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            try:
                silent = self._silent_seconds()
            except FileNotFoundError:
                return  # it has just been released
            holder = self._read()
            if self._lives(holder, silent):
                raise LockError(
                    f"{self.path} is held by {holder or 'somebody unknown'}, who gave a sign of "
                    f"life {silent:.0f} s ago; wait until that has ended."
                )
            logger.warning(
                "taking over %s: %s is gone (last sign of life %.0f s ago)",
                *(self.path, holder or "its holder", silent),
            )
            self.path.unlink(missing_ok=True)

    def _lives(self, holder: Holder | None, silent: float) -> bool:
        if holder is not None and holder.is_local():
            return holder.is_running()
        return silent < self.stale_seconds

    def _silent_seconds(self) -> float:
        """Since the file was touched, both times by the clock of the machine that keeps it."""
        touched = self.path.with_name(f".{self.path.name}.now.{uuid.uuid4().hex}")
        touched.touch()
        try:
            return max(0.0, touched.stat().st_mtime - self.path.stat().st_mtime)
        finally:
            touched.unlink()

    def _read(self) -> Holder | None:
        """What the file says; None if it is not there, or is not understood."""
        try:
            return Holder(**json.loads(self.path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _is_ours(self) -> bool:
        return self._holder is not None and self._read() == self._holder

    def _beat(self) -> None:
        while not self._released.wait(self.stale_seconds / BEATS):
            # A shared folder that cannot be reached for a moment is tried again.
            with contextlib.suppress(OSError):
                if self._is_ours():
                    os.utime(self.path)


def _system() -> str:
    """This boot and process namespace; empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_started(pid: int) -> str:
    """When a process started, in clock ticks since the boot; empty if it does not run."""
    try:
        # Behind the command's name, which may hold blanks and brackets; zombies have ended.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
