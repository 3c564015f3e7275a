"""What commands and scripts share: logging to the terminal, and errors in one line without a trace.

Flags are made from dataclasses by tyro, where each command is.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any

from devil.errors import DevilError

NOISY = ("httpx", "timm", "open_clip", "jax")
"""Libraries that log what nobody asked for."""


def start_logging(level: int) -> None:
    """Log to standard error from a level on."""
    logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s")
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


def own_error(error: BaseException) -> DevilError | None:
    """The error itself if it is one of DeViL's."""
    return error if isinstance(error, DevilError) else None


def exit_on_error(
    program: Callable[[], Any],
    ours: Callable[[BaseException], DevilError | None] = own_error,
) -> None:
    """Run a program; an error of the user's becomes one line and exit code 1.

    Args:
        program: what to run.
        ours: finds the user's error in an exception; None: it is a fault of the program's, and
            raised.
    """
    try:
        program()
    except Exception as error:
        found = ours(error)
        if found is None:
            raise
        print(f"error: {found}", file=sys.stderr)
        sys.exit(1)
