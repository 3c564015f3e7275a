"""A program: a tiny application on a Ray of its own, and what its metrics port then says of ours.

`python metered.py PORT` serves on a free port, and prints the lines as JSON. A program of its own,
for it sets how often Ray reports.
"""

import json
import os
import sys
import threading
import time
import urllib.request

import ray
import ray.serve
from fastapi import FastAPI

from serve import metrics
from serve.access import add_access
from serve.openapi import describe_api
from serve.settings import Settings

QUIET = 10.0
"""Seconds without a change after which no further report is expected."""
PATIENCE = 240.0
LAST = "ray_devil_audits"
"""The last of our metrics, by the order in which the application makes them."""


def repeat() -> None:
    """Set what has a state again and again, as the application does: Ray drops what is not."""
    while True:
        metrics.waiting(7)
        metrics.audited({"running": 2, "failed": 0})
        time.sleep(0.2)


def build() -> FastAPI:
    """An application whose only route reports."""
    api = FastAPI()

    @api.get("/v1/ask/{name}")
    async def ask(name: str) -> str:
        with metrics.timed("decode"):
            time.sleep(0.002)
        metrics.spent("queue", 0.05)
        metrics.batched(48, 0.75)
        metrics.batched(0, 0.0)
        if name == "a":
            threading.Thread(target=repeat, daemon=True).start()
        return name

    describe_api(api)
    add_access(api, Settings())
    return api


def scraped(port: int) -> list[str]:
    """Our lines on a metrics port, once all are there and have not changed for a while."""
    deadline = time.monotonic() + PATIENCE
    lines: list[str] = []
    before, since = lines, time.monotonic()
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
                page = answer.read().decode()
        except OSError:  # the agent is starting
            page = ""
        lines = [line for line in page.splitlines() if line.startswith("ray_devil_")]
        if lines != before:
            before, since = lines, time.monotonic()
        complete = any(line.startswith(LAST) for line in lines) and "requests" in str(lines)
        if complete and time.monotonic() - since > QUIET:
            return lines
        time.sleep(0.5)
    return lines


def main() -> None:
    """Serve, ask three times, scrape."""
    os.environ["RAY_metrics_report_interval_ms"] = "500"
    metrics.requested("/before", "GET", 200, 1.0)  # outside of Ray: counts for nothing
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        ray.serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
        asgi = ray.serve.deployment(ray.serve.ingress(build)(), ray_actor_options={"num_cpus": 0})
        ray.serve.run(asgi.bind())
        for name in "abc":
            url = f"http://127.0.0.1:{sys.argv[1]}/v1/ask/{name}"
            with urllib.request.urlopen(url, timeout=120) as answer:
                answer.read()
        print(json.dumps(scraped(ray.nodes()[0]["MetricsExportPort"])))
        ray.serve.shutdown()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
