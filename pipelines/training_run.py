"""A training around its steps: metrics, validation, checkpoints, the model folder.

A checkpoint holds all that the rest of the training depends on: weights, the optimiser's state, the
step, and the best weights so far with their score. The rest follows from the step: the schedule is
a function of it, and so is all randomness, together with the seed: the order of rows, draws and
hidden tokens (`devil.batches`), and the language model's dropout (`devil.training`).

A worker that begins at a step finds its chunk of files by itself, so checkpoints count steps and
not chunks: no more than `checkpoint_every` steps are lost, however large the chunks are.
"""

import logging
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed

from devil.config import DecodingConfig, to_dict
from devil.cost import matrix_rate, peak_memory
from devil.evaluation.stored import evaluate_stored
from devil.held_out import HeldOut
from devil.manifest import package_versions
from devil.model import DeViL
from devil.selection import Selection
from devil.training import StepMetrics, Trainer
from devil.types import ALL_LAYERS
from pipelines.training_failures import BROKEN_BATCH
from pipelines.training_metrics import MetricsFile

logger = logging.getLogger(__name__)


class TrainingRun:
    """Checkpoints, metrics and validation around the trainer's steps."""

    def __init__(
        self,
        output: Path,
        trainer: Trainer,
        model: DeViL,
        held_out: HeldOut,
        rank: int,
        world: int,
    ) -> None:
        self.output, self.trainer, self.model = output, trainer, model
        self.folder = output / "training"
        self.held_out, self.rank, self.world = held_out, rank, world
        self.config = trainer.config
        self.selection = Selection(self.config)
        self.stopped = False
        self.metrics = MetricsFile(self.folder)
        self.seconds = 0.0
        self._losses: list[float] = []
        self._captions = self._flops = 0
        self._matrix_rate = matrix_rate(trainer.device, trainer.dtype or torch.float32)
        self._started = time.perf_counter()

    def resume(self) -> None:
        """Go on from Ray Train's latest checkpoint, if there is one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                values = self.trainer.load(Path(folder))
                self.selection.load(Path(folder), values["selection"])
            self.seconds = float(values["seconds"])
            self.stopped = self.selection.exhausted
            logger.info("going on from step %d", self.trainer.step)
        if self.rank == 0:
            self.metrics.trim(self._stays)
            (self.folder / BROKEN_BATCH).unlink(missing_ok=True)
        self._started = time.perf_counter() - self.seconds

    def _stays(self, metrics: Mapping[str, Any]) -> bool:
        """Whether a line was written before the checkpoint, and will not come again.

        The last step's checkpoint comes before its validation.
        """
        last = metrics["step"] == self.config.steps and "cider_shuffled" in metrics
        return metrics["step"] <= self.trainer.step and not last

    def after_step(self, metrics: StepMetrics) -> None:
        """Log, validate and checkpoint as often as the configuration says."""
        self._losses.append(metrics.loss)
        self._captions += metrics.captions
        self._flops += metrics.flops
        step, config = metrics.step + 1, self.config
        if step % config.log_every == 0 or step == config.steps:
            self._log(step, metrics)
        if step % config.validate_every == 0 and step < config.steps:
            self._select(step)
        if step % config.checkpoint_every == 0 or step == config.steps or self.stopped:
            self.checkpoint({"step": step, "loss": metrics.loss})

    def _log(self, step: int, metrics: StepMetrics) -> None:
        loss = sum(self._losses) / len(self._losses)
        if self.world > 1:
            shares = torch.tensor([loss], device=self.trainer.device)
            torch.distributed.all_reduce(shares)
            loss = float(shares)
        elapsed = time.perf_counter() - self._started
        running = max(1e-9, elapsed - self.seconds)
        rate = self._captions * self.world / running
        values = {
            "loss": loss,
            "gradient_norm": metrics.gradient_norm,
            "learning_rate": metrics.learning_rate,
            "captions_per_second": rate,
            "share_of_matrix_rate": self._flops / running / self._matrix_rate,
            "peak_memory_gib": peak_memory(self.trainer.device) / 2**30,
        }
        self._losses = []
        if self.rank:
            return
        self.metrics.write(step, values)
        left = (self.config.steps - step) * (elapsed - self.seconds) / max(1, self._steps_done())
        logger.info(
            "step %d of %d: loss %.4f, %.0f captions/s, %.0f %% of the matrix rate, %.1f GiB, "
            "%.1f minutes left",
            step,
            self.config.steps,
            loss,
            rate,
            100 * values["share_of_matrix_rate"],
            values["peak_memory_gib"],
            left / 60,
        )

    def _steps_done(self) -> int:
        each = self.config.batch_size * self.config.captions_per_image / self.world
        return round(self._captions / each)

    def _select(self, step: int) -> None:
        """Validate between steps, on the first worker; others wait for it here or at the next."""
        if self.rank == 0:
            scores = self._validate(step, (ALL_LAYERS, self.model.layers[-1]))
            self.selection.offer(step, scores, self.model.translator)
            self.stopped = self.selection.exhausted
        if self.config.patience and self.world > 1:
            stopped = torch.tensor([self.stopped], dtype=torch.int32, device=self.trainer.device)
            torch.distributed.broadcast(stopped, src=0)
            self.stopped = bool(stopped)
        if self.stopped:
            logger.info("step %d: no better validation since step %s", step, self.selection.step)

    def _validate(self, step: int, layers: Sequence[str] | None = None) -> dict[str, float]:
        """Scores on held-out rows, written into the metrics."""
        if scores := self._scores(layers):
            self.metrics.write(step, scores)
            shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
            logger.info("step %d: %s", step, shown)
        return scores

    def _scores(self, layers: Sequence[str] | None = None) -> dict[str, float]:
        """Loss and CIDEr on held-out rows, from some layers or from all; empty: no rows."""
        if not self.held_out.keys:
            return {}
        scores = {}
        if not math.isnan(loss := self.trainer.validation_loss(self.held_out)):
            scores["validation_loss"] = loss
        decoding = DecodingConfig(max_new_tokens=min(30, self.config.max_caption_tokens))
        result = evaluate_stored(
            self.model, self.held_out, layers=layers, decoding=decoding, seed=self.config.seed
        )
        scores |= {f"cider_{layer}": value for layer, value in result.cider().items()}
        return scores | {"cider_shuffled": result.shuffled.cider}

    def checkpoint(self, metrics: dict[str, Any]) -> None:
        """Report to Ray Train; the first worker adds a checkpoint."""
        if self.rank:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            seconds = time.perf_counter() - self._started
            best = self.selection.save(Path(folder))
            self.trainer.save(Path(folder), seconds=seconds, selection=best)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def finish(self) -> None:
        """Validate all layers and write the model folder, with the best weights if one selects."""
        step = self.trainer.step
        if self.rank == 0:
            selected, scores = self._last_validation(step)
            self.model.summary = {
                "steps": step,
                "selected_step": selected,
                "captions_seen": step * self.config.batch_size * self.config.captions_per_image,
                "minutes": round((time.perf_counter() - self._started) / 60, 2),
                "config": to_dict(self.config),
                "scores": scores,
                "versions": package_versions(),
            }
            self.model.save_pretrained(self.output / "model")
            self.metrics.close()
        ray.train.report({"step": step})

    def _last_validation(self, step: int) -> tuple[int, dict[str, float]]:
        """The step whose weights the model has from here on, and their scores by each layer."""
        scores: dict[str, float] = {}
        if not self.stopped:  # otherwise the last weights were validated just now
            scores = self._validate(step)
            self.selection.offer(step, scores, self.model.translator)
        selected = self.selection.restore(self.model.translator)
        if selected is None or (selected == step and scores):
            return step, scores
        return selected, self._scores()
