"""Figures for Prometheus, from any process of Ray; Ray's agents export them on their metrics port.

Each function is cheap (microseconds), may be called from any thread, and does nothing outside of
Ray. Prometheus sees the names with `ray_` before them; docs/SERVICE.md lists them.
"""

import functools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import ray
import ray.util.metrics

Stage = Literal["read", "queue", "decode", "backbone", "translate", "render"]
"""Where a request's time goes: its body arrives; it waits for a batch; pictures are decoded; the
backbone sees them; translator and language model answer; the answer is written."""
SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
"""Upper ends of the buckets for durations."""
SHARES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
"""Upper ends of the buckets for the fill of batches."""


class _Metrics:
    """All of them; each process makes them once, when it is connected to Ray."""

    def __init__(self) -> None:
        of = ray.util.metrics
        self.requests = of.Counter(
            "devil_requests_total", "Requests, by their answers.", ("route", "method", "status")
        )
        self.request_seconds = of.Histogram(
            "devil_request_seconds", "From the start to the last byte.", SECONDS, ("route",)
        )
        self.stage_seconds = of.Histogram(
            "devil_stage_seconds", "Where the time of requests goes.", SECONDS, ("stage",)
        )
        self.waiting = of.Gauge(
            "devil_waiting_locations", "Locations that wait for a batch.", ("process",)
        )
        self.fill = of.Histogram(
            "devil_batch_fill", "Work of a batch, as a share of the most.", SHARES
        )
        self.locations = of.Counter("devil_locations_total", "Locations that were explained.")
        self.audits = of.Gauge("devil_audits", "Audits that are kept, by state.", ("state",))


@functools.cache
def _made() -> _Metrics:
    return _Metrics()


def _metrics() -> _Metrics | None:
    return _made() if ray.is_initialized() else None


def requested(route: str, method: str, status: int, seconds: float) -> None:
    """A request was answered."""
    if found := _metrics():
        tags = {"route": route, "method": method, "status": str(status)}
        found.requests.inc(1, tags)
        found.request_seconds.observe(seconds, {"route": route})


def spent(stage: Stage, seconds: float) -> None:
    """A request, or a batch of them, was in a stage for so long."""
    if found := _metrics():
        found.stage_seconds.observe(seconds, {"stage": stage})


@contextmanager
def timed(stage: Stage) -> Iterator[None]:
    """Count the time of a `with` block for a stage, unless it raises."""
    started = time.perf_counter()
    yield
    spent(stage, time.perf_counter() - started)


def waiting(locations: int) -> None:
    """So many locations wait in this process."""
    if found := _metrics():
        found.waiting.set(locations, {"process": str(os.getpid())})


def batched(locations: int, fill: float) -> None:
    """A batch of locations was explained, which took such a share of a turn's work."""
    if (found := _metrics()) and locations > 0:
        found.locations.inc(locations)
        found.fill.observe(min(1.0, fill))


def audited(counts: Mapping[str, int]) -> None:
    """How many audits are in each state; give every state, for those left out keep their value."""
    if found := _metrics():
        for state, count in counts.items():
            found.audits.set(count, {"state": state})
