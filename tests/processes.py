"""Processes of this machine that tests end: Ray's workers below a driver, and what a test left."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """What Linux tells of one."""

    number: int
    parent: int
    command: str


def processes() -> Iterator[Process]:
    """Those that run; zombies have ended."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_text()
        except OSError:  # it ended meanwhile
            continue
        if state[0] != "Z":
            yield Process(int(folder.name), int(state[1]), command)


def workers_of(driver: int, pattern: str) -> set[int]:
    """Descendants of a process whose command matches; another Ray's workers are not."""
    found = {process.number: process for process in processes()}

    def below(number: int) -> bool:
        while number in found and number != driver:
            number = found[number].parent
        return number == driver

    return {n for n, p in found.items() if re.search(pattern, p.command) and below(n)}


def kill_marked(mark: str) -> None:
    """SIGKILL all whose command holds a mark, such as a folder that is theirs alone."""
    for process in processes():
        if mark in process.command and process.number != os.getpid():
            try:
                os.kill(process.number, signal.SIGKILL)
            except ProcessLookupError:
                continue
