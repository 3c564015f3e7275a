"""One at a time: a second holder is refused, and what a dead one left behind is taken over."""

import contextlib
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from devil.errors import ConfigError, LockError, StorageError
from devil.lock import Holder, Lock

ROOT = Path(__file__).parent.parent
HOLD = "import sys, time; from devil.lock import Lock\nwith Lock(sys.argv[1]): time.sleep(600)"
OLD = 10_000.0
"""Seconds of silence after which anybody is given up."""


def hold(path: Path) -> subprocess.Popen[bytes]:
    """Another process that holds the lock."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], env=environment)
    while not path.is_file():
        assert process.poll() is None
        time.sleep(0.01)
    return process


def leave_behind(path: Path, *, silent: float, **changes: str) -> None:
    """The file of a holder on another machine, not touched for some seconds."""
    holder = replace(Holder.here(), host="elsewhere", **changes)
    path.write_text(json.dumps(asdict(holder)))
    os.utime(path, (time.time() - silent,) * 2)


def test_a_second_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.lock"
    with Lock(path) as lock:
        lock.check()
        with pytest.raises(LockError, match=f"held by process {os.getpid()} on .* wait until"):
            Lock(path).__enter__()
        lock.check()
    assert not path.exists()
    with Lock(path):
        assert path.is_file()


def test_another_process_is_named_and_its_lock_is_taken_over_when_it_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.lock"
    process = hold(path)
    try:
        with pytest.raises(LockError, match=f"held by process {process.pid} on "):
            Lock(path).__enter__()
    finally:
        os.kill(process.pid, signal.SIGKILL)
    # Dead, but not reaped, so a zombie at first; its file is as fresh as can be.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with caplog.at_level(logging.WARNING), Lock(path) as lock:
        assert f"taking over {path}: process {process.pid} on " in caplog.text
        lock.check()
    process.wait()


def test_another_process_with_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    holder = replace(Holder.here(), process_started="1")
    (tmp_path / "a.lock").write_text(json.dumps(asdict(holder)))
    with Lock(tmp_path / "a.lock") as lock:
        lock.check()


def test_another_machine_is_given_up_after_its_silence(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    leave_behind(path, silent=300)
    with pytest.raises(LockError, match=r"on elsewhere since .* life 3\d\d s ago"):
        Lock(path, stale_minutes=10).__enter__()
    with Lock(path, stale_minutes=4) as lock:
        lock.check()


def test_a_file_that_says_nothing_goes_stale_too(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    path.write_text("{")
    with pytest.raises(LockError, match="held by somebody unknown"):
        Lock(path).__enter__()
    os.utime(path, (time.time() - OLD,) * 2)
    with Lock(path):
        pass


def test_a_holder_gives_signs_of_life(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with Lock(path, stale_minutes=0.01):
        os.utime(path, (0, 0))
        while path.stat().st_mtime == 0:
            time.sleep(0.01)


def test_a_holder_that_lost_its_lock_learns_it_and_leaves_the_other_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with Lock(path) as lock:
        leave_behind(path, silent=0, token="another")
        with pytest.raises(
            LockError, match=r"lost while it was held here: now process .* elsewhere"
        ):
            lock.check()
    assert json.loads(path.read_text())["token"] == "another"


def test_of_many_that_find_a_stale_lock_one_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    for _ in range(10):
        leave_behind(path, silent=OLD)
        ready, release = threading.Barrier(8), threading.Event()
        won, lost = [], []

        def contend(
            ready: threading.Barrier = ready,
            release: threading.Event = release,
            won: list = won,
            lost: list = lost,
        ) -> None:
            ready.wait()
            try:
                with Lock(path):
                    won.append(1)
                    release.wait()
            except LockError:
                lost.append(1)

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        while len(won) + len(lost) < 8:
            time.sleep(0.001)
        release.set()
        for thread in threads:
            thread.join()
        assert len(won) == 1
    assert [p.name for p in tmp_path.iterdir()] == [".a.lock.guard"]


def test_times_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stale_minutes is 0; allowed: above 0"):
        Lock(tmp_path / "a.lock", stale_minutes=0)


@contextlib.contextmanager
def stirred(path: Path) -> Iterator[None]:
    """Another machine's signs of life, until the end of the block."""
    over = threading.Event()

    def stir() -> None:
        while not over.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=stir)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_patient_one_finds_out_whether_another_machine_lives(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    leave_behind(path, silent=0)
    with Lock(path, stale_minutes=0.01, patient=True) as lock:  # it stayed silent
        lock.check()
    leave_behind(path, silent=0)
    with stirred(path), pytest.raises(LockError, match=r"held by process .* on elsewhere"):
        Lock(path, stale_minutes=10, patient=True).__enter__()
    leave_behind(path, silent=0)
    thread = threading.Timer(0.3, path.unlink)  # it ended
    thread.start()
    with Lock(path, stale_minutes=10, patient=True) as lock:
        lock.check()


def test_a_patient_one_does_not_wait_for_a_process_that_it_sees(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with Lock(path), pytest.raises(LockError, match=f"held by process {os.getpid()} on "):
        Lock(path, stale_minutes=1e6, patient=True).__enter__()


def test_file_systems_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a.lock"
    with Lock(path) as lock:
        lock.check()
        with pytest.raises(LockError, match=f"held by process {os.getpid()} on "):
            Lock(path).__enter__()
    assert not path.exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"a\.lock cannot be used"):
        Lock(tmp_path / "file" / "a.lock").__enter__()
