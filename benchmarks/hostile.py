"""Thousands of hostile requests to a running service, and whether it then still answers.

    make serve
    python benchmarks/hostile.py http://127.0.0.1:8000

What must come out: no status of 500 or more, no request that hangs, no word of the code in an
answer, and every good request in between answered with 200. Figures go to
`benchmarks/results/service-hostile.json`. Requests are the same for a seed (`hostile_wire`,
`hostile_bodies`). Send them to servers of your own alone.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import tyro

from benchmarks.hostile_bodies import file_part, form, small_picture
from benchmarks.hostile_wire import attacks, post
from benchmarks.machine import describe_machine
from benchmarks.raw_http import Received, Sent, exchange
from devil.errors import ConfigError, DataError
from devil.files import write_json
from pipelines.cli import run_script

PROBLEM = "application/problem+json"
LEAKS = (b"Traceback", b'.py"', b"site-packages", b"RayTaskError", b"ActorDied")
"""Words of the code, which no answer may hold."""
OF_SERVER = (400, 426)
"""What is no HTTP, or no WebSocket, never reaches the application; the server beneath says so."""
TRIES = 60
"""Good requests may be told to wait (429) so often, a second each."""
SHOWN = 300
"""Bytes of a request and an answer that the record of a failure shows."""


@dataclass(frozen=True, kw_only=True)
class HostileOptions:
    """Options of the benchmark."""

    address: tyro.conf.Positional[str]
    """Of the service, `http://HOST:PORT`."""
    requests: int = 5000
    """How many."""
    seed: int = 0
    """Of the requests."""
    at_once: int = 8
    """Connections side by side."""
    patience: float = 180.0
    """Seconds until a request that gets no answer has hung."""
    good_every: int = 100
    """A good request follows so many hostile ones."""
    results: str = "benchmarks/results/service-hostile.json"
    """File of the figures."""


@dataclass
class Tally:
    """What came back."""

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    good: int = 0
    told_to_wait: int = 0

    def add(self, kind: str, sent: Sent, received: Received) -> None:
        """Count an answer, and keep it if it is a fault of the service's."""
        status = received.status
        seen = "none" if status is None else str(status)
        self.statuses.setdefault(kind, Counter())[seen] += 1
        why = fault(received)
        if why:
            request = b"".join(sent.pieces)[:SHOWN]
            record = {"kind": kind, "why": why, "request": repr(request)}
            self.failures.append(record | {"answer": repr(received.data[:SHOWN])})


def fault(received: Received) -> str | None:
    """What is wrong with an answer; None: nothing."""
    status = received.status
    if received.hung:
        return "hung"
    if status is None:
        return None
    if status >= 500:
        return f"status {status}"
    if any(word in received.data for word in LEAKS):
        return "an answer speaks of the code"
    headers = received.headers
    kind = headers.get("content-type", "")
    plain = status in OF_SERVER and kind.startswith("text/plain")
    if status >= 400 and kind != PROBLEM and not plain:
        return f"status {status} as {kind!r}"
    return None


def good_request(seed: int) -> Sent:
    """A request that must be answered with 200."""
    parts = [file_part(small_picture(random.Random(seed)))]
    parts += [('form-data; name="dense"', b"false"), ('form-data; name="max_new_tokens"', b"2")]
    return Sent(pieces=(post("/v1/explain", form(parts)),))


async def attack(options: HostileOptions) -> Tally:
    """Send all, some side by side.

    Raises:
        DataError: a good request was not answered.
    """
    url = httpx.URL(options.address)
    if url.host not in ("localhost", "127.0.0.1", "::1"):
        raise ConfigError(f"{url.host} is another machine; allowed: one's own, under 127.0.0.1.")
    host, port = url.host, url.port or 80
    tally = Tally()
    left = attacks(options.seed, options.requests)
    done = 0

    async def worker() -> None:
        nonlocal done
        for kind, sent in left:
            tally.add(kind, sent, await exchange(host, port, sent, options.patience))
            done += 1
            if done % options.good_every == 0:
                await be_answered(host, port, done, options.patience, tally)

    async with asyncio.TaskGroup() as group:
        for _ in range(options.at_once):
            group.create_task(worker())
    await be_answered(host, port, done, options.patience, tally)
    return tally


async def be_answered(host: str, port: int, seed: int, patience: float, tally: Tally) -> None:
    """Send a good request until it is answered.

    Raises:
        DataError: it was refused, or told to wait for too long.
    """
    for _ in range(TRIES):
        received = await exchange(host, port, good_request(seed), patience)
        if received.status == 200:
            tally.good += 1
            return
        if received.status != 429:
            break
        tally.told_to_wait += 1
        await asyncio.sleep(1)
    raise DataError(f"after {seed} hostile requests a good one got {received.data[:SHOWN]!r}.")


def hostile(options: HostileOptions) -> dict[str, Any]:
    """Run it; returns what the results file holds.

    Raises:
        ConfigError: the address is of another machine.
        DataError: the service has a fault.
    """
    started = time.perf_counter()
    tally = asyncio.run(attack(options))
    results = {
        "requests": options.requests,
        "seed": options.seed,
        "answers": {kind: dict(sorted(c.items())) for kind, c in sorted(tally.statuses.items())},
        "statuses": dict(sorted(sum(tally.statuses.values(), Counter()).items())),
        "good requests answered": tally.good,
        "good requests told to wait": tally.told_to_wait,
        "failures": tally.failures,
        "seconds": round(time.perf_counter() - started, 1),
        "machine": describe_machine(),
    }
    write_json(options.results, results)
    if tally.failures:
        raise DataError(f"{len(tally.failures)} faults, the first: {tally.failures[0]}")
    return results


def lines(results: dict[str, Any]) -> Iterator[str]:
    """What is printed."""
    yield f"{results['requests']} hostile requests in {results['seconds']} s, by status:"
    yield "  " + ", ".join(f"{status}: {n}" for status, n in results["statuses"].items())
    yield f"{results['good requests answered']} good ones between them answered, no fault."


def main(options: HostileOptions) -> None:
    """Run and print."""
    print("\n".join(lines(hostile(options))))


if __name__ == "__main__":
    run_script(HostileOptions, main, __doc__ or "")
