"""The file of a training's metrics, a JSON line for each step logged; TensorBoard's beside it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from devil.files import write_atomically

METRICS = "metrics.jsonl"


class MetricsFile:
    """Metrics of a training in its folder; written by one worker alone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / METRICS
        self._board: Any = None

    def trim(self, stays: Callable[[Mapping[str, Any]], bool]) -> None:
        """Keep whole lines of which `stays` is true."""
        if self.path.is_file():
            lines = [line for line in self.path.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if stays(json.loads(line))]
            write_atomically(self.path, "".join(f"{line}\n" for line in kept).encode())

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what TensorBoard still holds back."""
        if self._board is not None:
            self._board.close()
