"""Which step's weights a training keeps, and when it ends because they do not get better.

The best weights stand in memory on the CPU and in every checkpoint, with their score and the
validations since: a run that is stopped anywhere goes on with the ones it would have had.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from devil.config import TrainingConfig

logger = logging.getLogger(__name__)

BEST = "best.safetensors"
SCORES = {"loss": ("validation_loss", -1.0), "cider": ("cider_all", 1.0)}
"""Name of the score by `TrainingConfig.select`, and the sign that makes more of it better."""


class Selection:
    """The best weights so far, by a score of the validations.

    Attributes:
        step: after which they were validated; None before the first score.
        score: theirs.
        waited: validations since then.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.select, self.patience = config.select, config.patience
        self.step: int | None = None
        self.score = 0.0
        self.waited = 0
        self._weights: dict[str, Tensor] = {}

    @property
    def exhausted(self) -> bool:
        """Whether `patience` validations brought no improvement."""
        return 0 < self.patience <= self.waited

    def offer(self, step: int, scores: Mapping[str, float], translator: nn.Module) -> None:
        """Take the weights if their score is better than the best; equal ones stay.

        Args:
            step: steps of training that the weights have seen.
            scores: of a validation; without the score that selects, nothing is compared.
            translator: holds the weights.
        """
        name, sign = SCORES.get(self.select, ("", 0.0))
        if name not in scores:
            return
        if self.step is not None and sign * scores[name] <= sign * self.score:
            self.waited += 1
            return
        self.step, self.score, self.waited = step, scores[name], 0
        state = translator.state_dict()
        self._weights = {k: v.detach().to("cpu", copy=True) for k, v in state.items()}

    def restore(self, translator: nn.Module) -> int | None:
        """Give a translator the best weights; returns their step, None if none were chosen."""
        if self.step is not None:
            translator.load_state_dict(self._weights)
        elif self.select != "last":
            logger.warning("no validation gave a score to select by; the last weights stay")
        return self.step

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the weights, if there are any; returns the rest as plain values."""
        if self._weights:
            safetensors.torch.save_file(
                {k: v.contiguous() for k, v in self._weights.items()}, folder / BEST
            )
        return {"step": self.step, "score": self.score, "waited": self.waited}

    def load(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Go on from what `save` wrote and returned."""
        self.step, self.score, self.waited = values["step"], values["score"], values["waited"]
        if self.step is not None:
            # Copies, for the file is mapped, and the checkpoint's folder does not stay.
            mapped = safetensors.torch.load_file(folder / BEST)
            self._weights = {name: tensor.clone() for name, tensor in mapped.items()}
