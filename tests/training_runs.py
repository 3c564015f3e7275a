"""Tiny trainings through Ray: their options, their metrics, and what kills their workers."""

import json
import os
import re
import signal
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from processes import workers_of

from devil.config import LanguageModelConfig, TrainingConfig, TranslatorConfig
from pipelines.train import TrainOptions

STEPS = 12
TRAINER = "RayTrainWorker"
"""In the command of a training worker."""


def config(**changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "steps": STEPS,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "precision": "float32",
        "max_caption_tokens": 32,
        "validation_rows": 4,
        "validate_every": STEPS,
        "checkpoint_every": 3,
        "log_every": 1,
    }
    return TrainingConfig(**(values | changes))


def options(inputs: Path, output: Path, **changes: Any) -> TrainOptions:
    """A training of the store and the language model in `inputs`."""
    values: dict[str, Any] = {
        "store": str(inputs / "store"),
        "output": str(output),
        "language_model": LanguageModelConfig(name=str(inputs / "lm")),
        "translator": TranslatorConfig(width=16, depth=1, heads=2, feedforward=32, prefix_length=3),
        "training": config(),
        "cpus_per_worker": 1,
    }
    return TrainOptions(**(values | changes))


def metrics(output: Path, name: str = "loss") -> dict[int, float]:
    """Step → value, of the lines that have it."""
    lines = (output / "training" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["step"]: row[name] for row in rows if name in row}


def same_weights(one: Path, other: Path) -> bool:
    """Whether two outputs hold the same model, bit for bit."""
    models = [safetensors.torch.load_file(o / "model" / "model.safetensors") for o in (one, other)]
    return models[0].keys() == models[1].keys() and all(
        torch.equal(tensor, models[1][name]) for name, tensor in models[0].items()
    )


class Killer(threading.Thread):
    """Kills the worker that trains into `output` once at each of some steps, or soon after."""

    def __init__(self, output: Path, steps: Iterable[int]) -> None:
        super().__init__(daemon=True)
        self.path, self.steps = output / "training" / "metrics.jsonl", sorted(steps)
        self.killed: list[int] = []
        self._over = threading.Event()

    def run(self) -> None:
        for step in self.steps:
            while not (workers := workers_of(os.getpid(), TRAINER) - set(self.killed)):
                if self._over.wait(0.1):
                    return
            while self._step() < step:
                if self._over.wait(0.002):
                    return
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            self.killed += workers

    def _step(self) -> int:
        written = self.path.read_text() if self.path.is_file() else ""
        return max(map(int, re.findall(r'"step": (\d+)', written)), default=0)

    def __enter__(self) -> "Killer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
