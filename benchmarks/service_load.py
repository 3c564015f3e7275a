"""What the service gives: its rate beside the engine's own, and ten times the load it can carry.

    DEVIL_REAL_DATA=... python benchmarks/service_load.py

Needs the public load generator `hey` (Debian's package of that name). A small real model is trained
first (three shards of photos, some hundred steps), unless `--model` names one. Then the same photos
are captioned at every location of the last layer: by the library, in one process and in as many as
the service has copies, before and after the rest; over HTTP, by as many clients as keep it busy; by
`hey` at half of that rate; and at ten times of it. While the rate is measured nobody is refused.
Figures go to `benchmarks/results/service-load.json`.
"""

import asyncio
import csv
import itertools
import json
import logging
import math
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import ray
import ray.serve

from benchmarks.machine import describe_machine
from benchmarks.memory import resident
from benchmarks.real_photos import extract_options, real_data, train_options
from devil.data.webdataset import list_shards, read_shard
from devil.errors import ConfigError
from devil.files import write_json
from pipelines.cli import run_script
from pipelines.extract import extract
from pipelines.pool import start_ray
from pipelines.train import train
from serve.app import app
from serve.settings import Settings

LAYER, TOKENS = "blocks.11", 20
TOGETHER = 8
"""Pictures at once in the library."""
CLIENTS = 8
"""Requests at once for each copy while the rate is measured."""
WARM = 24
"""Pictures before any rate is measured: sizes of batches that are new take longer."""
CONTROL_SECONDS = "0.5"
"""Between two looks of Serve's controller, as in the Makefile."""
WORKERS = 8
"""Connections of the load beyond what can be carried. They send in step, all at once."""

logger = logging.getLogger("service")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of the benchmark."""

    model: str = ""
    """Model folder; empty: one is trained."""
    photos: int = 48
    """Photos that are captioned, again and again."""
    seconds: float = 120.0
    """How long each load lasts."""
    overload: float = 10.0
    """Times the measured rate."""
    max_wait_seconds: float = 0.5
    """Setting of the service under `hey`: what others would delay for longer is refused."""
    turn_locations: int = 768
    """Setting of the service: locations read at once."""
    replicas: int = 1
    """Setting of the service: copies of the model, which share the cores."""
    steps: int = 200
    """Steps of training, where a model is trained."""
    results: str = "benchmarks/results"
    """Folder of the figures."""


def load(options: LoadOptions) -> dict[str, Any]:
    """Measure, write the figures, and print them.

    Raises:
        ConfigError: `hey` is not installed.
    """
    if shutil.which("hey") is None:
        raise ConfigError("the load generator hey is not installed; apt-get install hey.")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", CONTROL_SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        start_ray()
        model = options.model or small_model(Path(folder), options.steps)
        photos = some_photos(options.photos)
        processes = sorted({1, options.replicas})
        rates = {count: [_library(model, photos, count)] for count in processes}
        found = _served(options, model, photos, Path(folder))
        for count in processes:  # again, for machines are not steady
            rates[count].append(_library(model, photos, count))
    served = found["served_locations_per_second"]
    found = {
        "machine": describe_machine(),
        "settings": {
            "layer": LAYER,
            "max_new_tokens": TOKENS,
            "turn_locations": options.turn_locations,
            "replicas": options.replicas,
            "max_wait_seconds": options.max_wait_seconds,
        },
        "offline": [
            {
                "processes": count,
                "locations_per_second": [round(rate, 1) for rate in measured],
                "served_share": round(served / statistics.mean(measured), 3),
            }
            for count, measured in rates.items()
        ],
        **found,
    }
    write_json(Path(options.results) / "service-load.json", found)
    print(json.dumps(found, indent=2))
    return found


def small_model(folder: Path, steps: int) -> str:
    """A model trained for a short while, whose captions end by themselves."""
    data = real_data()
    extraction = extract_options(data, folder, "train")
    extract(replace(extraction, limit=3))
    full = train_options(data, folder)
    short = replace(
        full.training, steps=steps, warmup_steps=50, validation_rows=0, checkpoint_every=steps
    )
    train(replace(full, training=short))
    return str(folder / "model")


def some_photos(count: int) -> list[bytes]:
    """Files of validation photos."""
    shards = list_shards(str(real_data() / "photos" / "val"))
    samples = (s.image for shard in shards for s in read_shard(shard) if s.image)
    return list(itertools.islice(samples, count))


def _library(model: str, photos: Sequence[bytes], processes: int) -> float:
    """Locations a second of the library in some processes, which share the cores."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    engines = [_Engine.remote(model, threads) for _ in range(processes)]
    ray.get([engine.rate.remote(photos[:TOGETHER]) for engine in engines])
    parts = [photos[place::processes] for place in range(processes)]
    calls = [engine.rate.remote(part) for engine, part in zip(engines, parts, strict=True)]
    rate = sum(ray.get(calls))
    logger.info("library in %d processes: %.1f locations/s", processes, rate)
    return rate


@ray.remote(num_cpus=0)
class _Engine:
    """The library in a process like the service's."""

    def __init__(self, model: str, threads: int) -> None:
        import torch

        from devil.model import DeViL

        torch.set_num_threads(threads)
        self.model = DeViL.from_pretrained(model)

    def rate(self, photos: Sequence[bytes]) -> float:
        """Locations a second."""
        from devil.config import DecodingConfig
        from devil.describing import explain_images

        decoding, count = DecodingConfig(max_new_tokens=TOKENS), 0
        began = time.perf_counter()
        for i in range(0, len(photos), TOGETHER):
            group = photos[i : i + TOGETHER]
            found = explain_images(self.model, group, layers=[LAYER], decoding=decoding)
            count += sum(math.prod(e.layers[LAYER].grid) for e in found)
        return count / (time.perf_counter() - began)


def _served(
    options: LoadOptions, model: str, photos: Sequence[bytes], folder: Path
) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.serve.start(http_options={"host": "127.0.0.1", "port": port})
    common = {"model": model, "state": str(folder / "state"), "log_format": "text"}
    common |= {"turn_locations": options.turn_locations, "replicas": options.replicas}
    common |= {"keep_explanations": 10}
    address = f"http://127.0.0.1:{port}"
    ray.serve.run(app(Settings.model_validate({**common, "max_wait_seconds": 1000})))
    rate = asyncio.run(_rate(address, photos, CLIENTS * options.replicas))
    logger.info("service: %.1f locations/s", rate["locations"])
    limited = {**common, "max_wait_seconds": options.max_wait_seconds}
    ray.serve.run(app(Settings.model_validate(limited)))
    body = folder / "body.json"
    body.write_text(json.dumps(_request(photos[0])))
    loads, memory = {}, {}
    for name, share in (("half", 0.5), ("overload", options.overload)):
        memory[name] = _memory()
        workers = 1 if share < 1 else WORKERS
        loads[name] = hey(address, body, rate["requests"] * share, options.seconds, workers)
        logger.info("%s: %s", name, loads[name])
    memory["after"] = _memory()
    ray.serve.shutdown()
    return {
        "served_locations_per_second": round(rate["locations"], 1),
        "served_requests_per_second": round(rate["requests"], 2),
        "loads": loads,
        "p99_ratio": round(loads["overload"]["p99_s"] / loads["half"]["p99_s"], 2),
        "memory_mb": memory,
    }


def _request(photo: bytes) -> dict[str, Any]:
    asked = {"layers": [LAYER], "max_new_tokens": TOKENS, "keep": False}
    return {"image": b64encode(photo).decode(), **asked}


async def _rate(address: str, photos: Sequence[bytes], clients: int) -> dict[str, float]:
    """Locations and requests a second with so many requests open at all times."""
    waiting = iter([*photos[:WARM], *photos, *photos])
    done: list[tuple[float, int]] = []

    async def ask(client: httpx.AsyncClient) -> None:
        for photo in waiting:
            answer = (await client.post("/v1/caption", json=_request(photo))).raise_for_status()
            grid = answer.json()["layers"][0]["grid"]
            done.append((time.perf_counter(), math.prod(grid)))

    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        await asyncio.gather(*(ask(client) for _ in range(clients)))
    done = done[WARM - 1 : -clients]  # while all clients are busy
    seconds = done[-1][0] - done[0][0]
    return {
        "locations": sum(n for _, n in done[1:]) / seconds,
        "requests": (len(done) - 1) / seconds,
    }


def hey(address: str, body: Path, rate: float, seconds: float, workers: int) -> dict[str, Any]:
    """Send requests at a rate, whatever becomes of them; statuses, and seconds of the accepted."""
    command = ["hey", "-z", f"{seconds:.0f}s", "-c", str(workers), "-q", f"{rate / workers:.6f}"]
    command += ["-m", "POST", "-T", "application/json", "-t", "120", "-o", "csv", "-D", str(body)]
    printed = subprocess.run(
        [*command, f"{address}/v1/caption"], capture_output=True, text=True, check=True
    ).stdout
    rows = list(csv.DictReader(printed.splitlines()))
    accepted = sorted(float(row["response-time"]) for row in rows if row["status-code"] == "200")
    return {
        "asked_per_second": round(rate, 2),
        "sent": len(rows),
        "statuses": dict(Counter(row["status-code"] for row in rows)),
        "accepted_per_second": round(len(accepted) / seconds, 2),
        "median_s": round(statistics.median(accepted), 3),
        "p99_s": round(accepted[math.ceil(0.99 * len(accepted)) - 1], 3),
    }


def _memory() -> dict[str, int]:
    """Resident megabytes of the service's processes."""
    found: dict[str, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text().replace("\0", " ")
            for part in ("Explainer", "Ingress", "ProxyActor"):
                if command.startswith("ray::") and part in command:
                    found[part] = found.get(part, 0) + resident(int(folder.name)) // 2**20
        except (OSError, ValueError):  # it has ended
            continue
    return found


if __name__ == "__main__":
    run_script(LoadOptions, load, __doc__ or "")
