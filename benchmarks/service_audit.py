"""A bulk audit over HTTP with corrupt files, and the service restarted in its middle.

    python -m benchmarks.service_audit --model runs/demo/model --folder runs/service-audit

A Ray head of its own, the real `serve` application on it, an upload of small pictures of which one
in a hundred is corrupt, `serve shutdown` and a new start while the job runs: at the end every
picture must be accounted for once. A small model will do, for what is measured is the service.
"""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import tyro
from PIL import Image

from benchmarks.machine import describe_machine
from devil.files import write_json

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "service-audit.json"
HEADS = "port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port"
UP = """
import json, sys, ray, ray.serve
from serve.app import app
from serve.settings import Settings
ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False)
ray.serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
ray.serve.run(app(Settings(**json.loads(sys.argv[3]))))
"""
DOWN = """
import sys, ray, ray.serve
ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False)
ray.serve.shutdown()
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    model: str
    """Model folder."""
    folder: str
    """Where the service keeps its audits; must not exist."""
    pictures: int = 2000
    """How many are uploaded."""
    corrupt: int = 100
    """One in so many is corrupt."""
    output: str = str(RESULT)
    """JSON file of the figures."""


def main(options: Options) -> None:
    """Run the audit, check it, print and keep the figures."""
    files = pictures(options.pictures, options.corrupt)
    archive = zipped(files)
    broken = sum(content.startswith(b"broken") for content in files.values())
    with head() as address:
        port = free_ports(1)[0]
        settings = {"model": options.model, "state": options.folder, "device": "cpu", "threads": 1}
        run(UP, address, str(port), json.dumps(settings))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
            figures = audited(client, archive, lambda: restart(address, port, settings))
            document = figures.pop("document")
            accounted = account(client, document, files)
    assert accounted["explained"] == len(files) - broken and accounted["failed"] == broken
    result = {
        "machine": describe_machine(),
        "model": document["model"],
        "pictures": len(files),
        "corrupt": broken,
        "archive_bytes": len(archive),
        **figures,
        **accounted,
    }
    write_json(options.output, result)
    print(json.dumps(result, indent=2))


def pictures(count: int, corrupt: int) -> dict[str, bytes]:
    """Small pictures of noise and colour by name; corrupt ones break off, or are no pictures."""
    files = {}
    for index in range(count):
        noise = np.random.default_rng(index).integers(0, 255, (48, 48, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).resize((64, 64)).save(stream, "JPEG")
        bad = index % corrupt == corrupt // 2
        files[f"{index % 10}/{index:05d}.jpg"] = b"broken" * 20 if bad else stream.getvalue()
    return files


def zipped(files: dict[str, bytes]) -> bytes:
    """An archive of the files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def audited(client: httpx.Client, archive: bytes, restarted: Any) -> dict[str, Any]:
    """Upload, restart the service when a third is done, and wait for the end."""
    begun = time.monotonic()
    asked = {"layers": ["all"], "dense": "false", "max_new_tokens": "8", "queries": ["dog"]}
    response = client.post("/v1/audits", files={"archive": archive}, data=asked)
    assert response.status_code == 202, response.text
    uploaded = time.monotonic()
    address = response.headers["location"]
    outage: dict[str, Any] = {}
    while True:
        document = client.get(address).raise_for_status().json()
        progress = document["progress"]
        done = progress["explained"] + progress["failed"]
        if not outage and done * 3 > progress["pictures"]:
            before = time.monotonic()
            restarted()
            after = client.get(address).raise_for_status().json()["progress"]
            outage = {
                "done_before_restart": done,
                "done_after_restart": after["explained"] + after["failed"],
                "restart_seconds": round(time.monotonic() - before, 1),
            }
        if document["state"] not in ("queued", "running"):
            break
        time.sleep(0.5)
    assert document["state"] == "finished" and outage, document
    return {
        "upload_seconds": round(uploaded - begun, 2),
        "audit_seconds": round(time.monotonic() - uploaded, 1),
        **outage,
        "document": document,
    }


def account(
    client: httpx.Client, document: dict[str, Any], files: dict[str, bytes]
) -> dict[str, Any]:
    """Read all results back: each file once, in the tables or in the errors."""
    found: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for counts, listed in ((found, "parts"), (failed, "errors")):
        for address in document["results"][listed]:
            content = client.get(address).raise_for_status().content
            counts.update(pq.read_table(io.BytesIO(content))["key"].to_pylist())
    assert found + failed == Counter(dict.fromkeys(files, 1)), "not every picture once"
    report = client.get(document["results"]["report"]).raise_for_status()
    return {
        "explained": len(found),
        "failed": len(failed),
        "failures": document["progress"]["failures"],
        "parts": len(document["results"]["parts"]),
        "report_bytes": len(report.content),
        "every_picture_once": True,
    }


def restart(address: str, port: int, settings: dict[str, Any]) -> None:
    """End Serve, and start the application again."""
    run(DOWN, address)
    run(UP, address, str(port), json.dumps(settings))


def run(program: str, *arguments: str) -> None:
    """Run a program that ends soon."""
    subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, env=environment(), check=True
    )


def environment() -> dict[str, str]:
    """For Ray's processes."""
    slow = {f"RAY_SERVE_PROXY_{name}_CHECK_TIMEOUT_S": "120" for name in ("READY", "HEALTH")}
    return {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **slow}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    return ports


@contextmanager
def head() -> Iterator[str]:
    """A Ray head with its dashboard; its address."""
    ports = dict(zip(HEADS, free_ports(len(HEADS)), strict=True))
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        options = [f"--{name}={port}" for name, port in ports.items()]
        options += ["--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={folder}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        process = subprocess.Popen(
            [*command, *options, "--num-cpus=4", "--object-store-memory=200000000"],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{ports['dashboard-port']}/api/version"
            for _ in range(360):
                try:
                    httpx.get(url, timeout=10).raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.5)
            yield f"127.0.0.1:{ports['port']}"
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
