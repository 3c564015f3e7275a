"""What clients are told of an error: its message without the paths of this machine."""

import re
from collections.abc import Mapping
from pathlib import Path

LONGEST = 2000
PATH = re.compile(r"(?<![\w:/.])/(?:[^\s/'\"]+/)*([^\s/'\"]+)")
"""An absolute path; its last part is kept."""


def told(message: str, known: Mapping[str, str]) -> str:
    """A message for clients: paths that they know are named so, of others the last part is left."""
    for path, name in sorted(known.items(), key=lambda pair: -len(pair[0])):
        message = message.replace(path, name if "://" in name else f"<{Path(name).name}>")
    return PATH.sub(r"\1", message)[:LONGEST]
