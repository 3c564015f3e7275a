"""Memory of this process and of Ray's workers while a block runs, as Linux counts it."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


class Peaks:
    """Largest resident memory seen, in bytes."""

    def __init__(self) -> None:
        self.driver = 0
        self.worker = 0
        """Of the largest of the pool's workers."""

    def look(self) -> None:
        """Look once."""
        self.driver = max(self.driver, resident(os.getpid()))
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_text()
                if command.startswith("ray::") and "_Actor" in command:
                    self.worker = max(self.worker, resident(int(folder.name)))
            except (OSError, ValueError):  # it has ended
                continue


def resident(process: int) -> int:
    """Bytes of a process that lie in memory."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE


@contextmanager
def peaks(seconds: float = 0.5) -> Iterator[Peaks]:
    """Look every so often while the block runs."""
    found, stopped = Peaks(), threading.Event()

    def watch() -> None:
        while not stopped.wait(seconds):
            found.look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stopped.set()
        thread.join()
        found.look()
