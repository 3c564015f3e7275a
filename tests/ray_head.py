"""A Ray head of its own, with its dashboard, as a process group that tests start and end."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from processes import kill_marked

RAY = (sys.executable, "-m", "ray.scripts.scripts")


class Head(NamedTuple):
    """Where a head is reached."""

    dashboard: str
    address: str
    """For `ray.init`."""
    folder: str
    """Its own, which stands in the commands of its processes."""


def environment() -> dict[str, str]:
    """That of a machine where this checkout is not on the path, and no other Ray is known."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_register_timeout_seconds": "300",
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",
    }


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    return ports


@contextmanager
def ray_head(cpus: int = 4) -> Iterator[Head]:
    """Start a head, and stop it at the end of the block."""
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    # Short, for the paths of its sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        options = [f"--{name}={port}" for name, port in ports.items()]
        options += ["--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={folder}"]
        options += [f"--num-cpus={cpus}", "--object-store-memory=200000000"]
        log = Path(folder) / "start.log"
        with open(log, "w") as output:
            head = subprocess.Popen(
                [*RAY, "start", "--head", "--block", *options],
                env=environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            url = f"http://127.0.0.1:{ports['dashboard-port']}"
            wait_for(url, head, log)
            yield Head(url, f"127.0.0.1:{ports['port']}", folder)
        finally:
            stop(head, folder)


def wait_for(url: str, head: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the dashboard answers."""
    deadline = time.monotonic() + 180
    while True:
        assert head.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(f"{url}/api/version", timeout=10):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)


def stop(head: subprocess.Popen[bytes], folder: str) -> None:
    """End the head's processes, and no other Ray's (as `ray stop` would)."""
    head.terminate()
    try:
        head.wait(timeout=60)
    except subprocess.TimeoutExpired:
        pass
    kill_marked(folder)
    head.wait(timeout=60)
