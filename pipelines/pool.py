"""Units of work through a pool of Ray Data actors; records come back as they finish."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import ray
import ray.data
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import devil.errors
from devil.errors import ConfigError, DevilError
from pipelines.attempts import Attempts

logger = logging.getLogger(__name__)

KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}
"""Environment of workers: glibc keeps what is freed, for the next step asks for the same again.

By default it hands blocks of some megabytes back to the kernel, which clears them page by page when
they come again: up to half the time of a training step on a virtual machine.
"""

FAILURE = "failure"
"""Column of a record that stands for an error: its class; its text is in `message`."""
DEADLY = "deadly"
"""Column of a record that stands for a unit which killed its worker again and again."""
ATTEMPTS = 3
"""So many workers may a unit kill before it is set aside."""
START = "<start>"
"""Stands among the units that were begun for a worker's start."""


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """How many workers, and what each takes of the cluster."""

    workers: int = 0
    """Actors; 0: as many as the cluster's GPUs, or else its processors, allow."""
    cpus_per_worker: int = 2
    """Processors, and threads, of each actor."""
    gpus_per_worker: float = 0.0
    """GPUs of each actor; a fraction shares one."""

    def __post_init__(self) -> None:
        for name, least in (("workers", 0), ("cpus_per_worker", 1), ("gpus_per_worker", 0)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: at least {least}.")


def own_device() -> str:
    """The GPU that this process sees, which Ray chooses for a worker; without one the processor."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def start_ray() -> None:
    """Join the cluster of `RAY_ADDRESS`, or start Ray on this machine, unless it runs already."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"logging_level": logging.WARNING, "log_to_driver": True}
    # What the user set stays.
    environment = {name: os.environ.get(name, value) for name, value in KEEP_MEMORY.items()}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(runtime_env={"env_vars": environment}, **quiet)
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        # Ray Data needs a few processors for itself, whatever the machine has.
        cpus = max(4, os.cpu_count() or 1)
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            runtime_env={
                "env_vars": environment,
                "worker_process_setup_hook": _quiet_worker(),
            },
            **quiet,
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def _quiet_worker() -> Callable[[], None]:
    """What a worker does first: without a dashboard, Ray Train's cleaner complains each second.

    The function is made here so that it travels by value: by name, every worker would import this
    module first.
    """

    def quiet() -> None:
        cleaner = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
        logging.getLogger(cleaner).setLevel(logging.ERROR)

    return quiet


def worker_count(config: PoolConfig, units: int) -> int:
    """Actors to start for some units of work."""
    if config.workers:
        return max(1, min(config.workers, units))
    resources = ray.cluster_resources()
    if config.gpus_per_worker:
        fit = resources.get("GPU", 0) / config.gpus_per_worker
    elif len(ray.nodes()) == 1:
        fit = (os.cpu_count() or 1) / config.cpus_per_worker
    else:
        fit = resources.get("CPU", 1) / config.cpus_per_worker
    return max(1, min(math.floor(fit), units))


def check_room(workers: int, cpus: float, gpus: float) -> None:
    """Refuse what this machine can never give, for which Ray would wait; a cluster may grow.

    Args:
        workers: how many run at once.
        cpus, gpus: what each of them holds.

    Raises:
        ConfigError: Ray runs on this machine alone, and has less.
    """
    if os.environ.get("RAY_ADDRESS") or len(ray.nodes()) > 1:
        return
    has = ray.cluster_resources()
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        if workers * each > has.get(name, 0):
            raise ConfigError(
                f"{workers} workers with {each:g} {name} each are more than this machine has "
                f"({has.get(name, 0):g} {name}); ask for fewer, or set RAY_ADDRESS to a cluster."
            )


class _Actor:
    """Builds the worker in the actor's process, then hands it one unit at a time.

    An error of the user's comes back as a record: Ray Data wraps what is raised, and the wrapper
    loses its cause between processes.
    """

    def __init__(
        self,
        build: Callable[..., Any],
        arguments: dict[str, Any],
        threads: int,
        attempts: Any,
        starts: int,
    ) -> None:
        torch.set_num_threads(threads)
        self.attempts = attempts
        self.failure: DevilError | None = None
        died = cast(int, ray.get(attempts.begin.remote(START)))
        try:
            if died >= starts:  # Ray would start workers for ever
                raise DevilError(
                    f"workers died {died} times while they started, and none lived; look at their "
                    "logs, and at the machine's memory."
                )
            self.worker = build(**arguments)
        except DevilError as error:
            self.failure = error
        finally:
            attempts.end.remote(START)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        (unit,) = batch["unit"]
        begun = cast(int, ray.get(self.attempts.begin.remote(str(unit))))
        if begun >= ATTEMPTS:
            return {DEADLY: [str(unit)]}
        try:
            if self.failure is not None:
                raise self.failure
            record = self.worker(unit)
        except DevilError as error:
            return {FAILURE: [type(error).__name__], "message": [str(error)]}
        finally:
            self.attempts.end.remote(str(unit))
        return {name: [value] for name, value in record.items()}


def over_pool(
    units: Sequence[Any],
    build: Callable[..., Callable[[Any], dict[str, Any]]],
    arguments: dict[str, Any],
    config: PoolConfig,
    *,
    deadly: list[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run `build(**arguments)` in each actor, and its result on every unit.

    An actor that dies is replaced, and its unit begun again.

    Args:
        units: strings, or other plain values.
        build: makes the worker; loads its model, so it runs once for each actor.
        arguments: for `build`.
        config: size of the pool.
        deadly: gets the units on which `ATTEMPTS` workers died, and which are set aside; None: the
            first one ends the run.

    Returns:
        The workers' records, in the order in which they finish.

    Raises:
        ConfigError: the pool is larger than this machine.
        DevilError: the first that a worker raised; the units after it are given up. Or workers
            die while they start, again and again.
    """
    start_ray()
    count = worker_count(config, len(units))
    check_room(count, config.cpus_per_worker, config.gpus_per_worker)
    logger.info("%d units over %d workers", len(units), count)
    dataset = ray.data.from_items(
        [{"unit": unit} for unit in units], override_num_blocks=len(units)
    )
    beside_us = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    lasting: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1}
    lasting["scheduling_strategy"] = beside_us
    attempts = ray.remote(num_cpus=0, **lasting)(Attempts).remote()
    results = dataset.map_batches(
        _Actor,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=count, max_size=count),
        num_cpus=config.cpus_per_worker,
        num_gpus=config.gpus_per_worker or None,
        fn_constructor_kwargs={
            "build": build,
            "arguments": arguments,
            "threads": config.cpus_per_worker,
            "attempts": attempts,
            "starts": ATTEMPTS * count,
        },
    )
    for record in results.iter_rows():
        if FAILURE in record:
            raise getattr(devil.errors, record[FAILURE], DevilError)(record["message"])
        if DEADLY not in record:
            yield record
            continue
        message = f"{ATTEMPTS} workers died on {record[DEADLY]}"
        if deadly is None:
            raise DevilError(f"{message}; look at their logs, and at the machine's memory.")
        logger.error("%s; it is set aside", message)
        deadly.append(record[DEADLY])
