"""What decides a run's result, kept in its folder: no other run goes on with it by mistake."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devil.errors import ConfigError
from devil.files import write_json


def claim_run(path: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether `path` holds a run of these very options; a new run is written down there.

    Args:
        path: JSON file in the run's folder.
        wanted: plain values that decide the run's result.

    Raises:
        ConfigError: the folder belongs to a run with other options.
    """
    if not path.is_file():
        write_json(path, wanted)
        return False
    found, asked = json.loads(path.read_text()), json.loads(json.dumps(wanted))
    if found != asked:
        different = sorted(k for k in found | asked if found.get(k) != asked.get(k))
        raise ConfigError(
            f"{path.parent} holds a run with another {', '.join(different)}; give another "
            "--output, or remove that folder."
        )
    return True
