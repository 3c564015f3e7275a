"""What every script shares: flags made from a dataclass, logging, errors without a traceback."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from devil.cli import exit_on_error, start_logging
from devil.errors import ConfigError, DevilError

Options = TypeVar("Options")


def run_script(
    options: type[Options],
    main: Callable[[Options], Any],
    description: str,
    *,
    arguments: Sequence[str] | None = None,
) -> None:
    """Parse the command line into `options`, run `main`, and exit 1 on an error of the user's.

    Args:
        options: dataclass from which the flags are made.
        main: the program.
        description: shown by `--help`.
        arguments: the command line; None: the script's own.
    """
    parsed = tyro.cli(options, description=description, args=arguments)
    start_logging(logging.INFO)
    exit_on_error(lambda: main(parsed), devil_error)


def absolute(address: str) -> str:
    """A local path as workers need it, who have working folders of their own; a URL as it is."""
    return address if "://" in address else str(Path(address).resolve())


def local_folder(name: str, address: str) -> None:
    """Refuse a bucket where a folder is needed; its address would become a folder's name.

    Raises:
        ConfigError: it is one.
    """
    if "://" in address:
        raise ConfigError(
            f"{name} is {address}; allowed: a folder (on a cluster, one that all nodes share)."
        )


def known_place(name: str) -> str:
    """A local folder or file as workers need it; a hub's or library's name as it is."""
    return absolute(name) if name and Path(name).exists() else name


def devil_error(error: BaseException | None) -> DevilError | None:
    """The `DevilError` at the root of an exception, through Ray's wrappers."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        failures = getattr(error, "worker_failures", None)  # Ray Train: rank → exception
        inner = next(iter(failures.values())) if failures else getattr(error, "cause", None)
        inner = getattr(error, "controller_failure", inner)  # Ray Train: what ended it at once
        # Ray's wrapper of a task's error is of the error's own class, too; its text a traceback.
        if isinstance(error, DevilError) and not isinstance(inner, BaseException):
            return error
        error = inner or error.__cause__ or error.__context__
    return None
