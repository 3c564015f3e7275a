"""What a training worker does: batches, steps, metrics, validation, checkpoints, the folder."""

import dataclasses
import json
import logging
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed

from devil.batches import Batch, TrainingBatches
from devil.config import (
    DecodingConfig,
    LanguageModelConfig,
    TrainingConfig,
    TranslatorConfig,
    from_dict,
    to_dict,
)
from devil.cost import matrix_rate, peak_memory
from devil.evaluation.stored import evaluate_stored
from devil.features import FeatureStore, package_versions
from devil.files import write_atomically
from devil.held_out import HeldOut
from devil.language_model import LanguageModel, load_language_model
from devil.model import DeViL
from devil.prefetching import prefetched
from devil.training import StepMetrics, Trainer
from devil.translator import Translator
from devil.types import ALL_LAYERS

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


def train_worker(loop: dict[str, Any]) -> None:
    """What each worker of Ray Train runs."""
    options = loop["options"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    config = from_dict(TrainingConfig, options["training"])
    torch.set_num_threads(options["threads"])
    device = ray.train.torch.get_device()
    lm = load_language_model(
        from_dict(LanguageModelConfig, options["language_model"]), device=device
    )
    store = FeatureStore.open(options["store"])
    translator_config = from_dict(TranslatorConfig, options["translator"])
    batches = TrainingBatches(
        store,
        lm,
        config,
        layers=options["layers"],
        class_tokens=translator_config.class_tokens,
        rank=rank,
        world=world,
    )
    model = build_model(options, store, batches, lm, device)
    wrapped = ray.train.torch.prepare_model(model.translator) if world > 1 else None
    trainer = Trainer(model.translator, lm, config, wrapped=wrapped, world=world)
    held_out = batches.held_out()
    run = TrainingRun(Path(loop["output"]), trainer, model, held_out, rank, world)
    run.resume()
    made = batches(trainer.step, config.steps)
    ready = prefetched(map(Batch.pinned, made) if device.type == "cuda" else made)
    for batch in ready:
        run.after_step(trainer.train_step(batch))
    run.finish()


def build_model(
    options: Mapping[str, Any],
    store: FeatureStore,
    batches: TrainingBatches,
    lm: LanguageModel,
    device: torch.device,
) -> DeViL:
    """An untrained model for the store's features, seeded, with the features' statistics."""
    torch.manual_seed(options["training"]["seed"])
    manifest = store.manifest
    shapes = {layer: manifest.layers[layer] for layer in batches.layers}
    translator = Translator(
        from_dict(TranslatorConfig, options["translator"]),
        {layer: shape.channels for layer, shape in shapes.items()},
        lm.embedding_width,
    )
    statistics = batches.statistics()
    translator.standardise_by(statistics)
    return DeViL(
        translator=translator.to(device),
        language_model=lm,
        backbone_config=dataclasses.replace(manifest.backbone, layers=batches.layers),
        backbone_digest=manifest.backbone_digest,
        shapes=shapes,
        statistics=statistics,
        name=options["name"],
    )


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
        self.held_out, self.rank, self.world = held_out, rank, world
        self.config = trainer.config
        self.seconds = 0.0
        self._losses: list[float] = []
        self._captions = self._flops = 0
        self._matrix_rate = matrix_rate(trainer.device, trainer.dtype or torch.float32)
        self._started = time.perf_counter()
        self._board: Any = None
        self._last_checkpoint = -1

    def resume(self) -> None:
        """Go on from Ray Train's latest checkpoint, if there is one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                self.seconds = float(self.trainer.load(Path(folder))["seconds"])
            self._last_checkpoint = self.trainer.step
            logger.info("going on from step %d", self.trainer.step)
        self._trim_metrics()
        self._started = time.perf_counter() - self.seconds

    def _trim_metrics(self) -> None:
        """Drop lines that a killed run wrote after its last checkpoint, or that will come again."""
        path = self.output / "training" / METRICS
        if self.rank == 0 and path.is_file():
            lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if self._stays(json.loads(line))]
            write_atomically(path, "".join(f"{line}\n" for line in kept).encode())

    def _stays(self, metrics: Mapping[str, Any]) -> bool:
        """The last step's checkpoint comes before its validation."""
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
            self._validate(step)
        if step % config.checkpoint_every == 0 or step == config.steps:
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
        self._write(step, values)
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

    def _validate(self, step: int) -> dict[str, float]:
        """Loss and CIDEr on held-out rows, on the first worker; others wait at the next step."""
        if self.rank or not self.held_out.keys:
            return {}
        scores = {}
        if not math.isnan(loss := self.trainer.validation_loss(self.held_out)):
            scores["validation_loss"] = loss
        decoding = DecodingConfig(max_new_tokens=min(30, self.config.max_caption_tokens))
        last = self.model.layers[-1]
        chosen = None if step == self.config.steps else (ALL_LAYERS, last)
        self.model.eval()
        result = evaluate_stored(
            self.model, self.held_out, layers=chosen, decoding=decoding, seed=self.config.seed
        )
        scores |= {f"cider_{layer}": value for layer, value in result.cider().items()}
        scores["cider_shuffled"] = result.shuffled.cider
        self._write(step, scores)
        logger.info("step %d: %s", step, ", ".join(f"{k} {v:.4f}" for k, v in scores.items()))
        return scores

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        """Append to the metrics; for the first worker alone."""
        folder = self.output / "training"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / METRICS, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def checkpoint(self, metrics: dict[str, Any]) -> None:
        """Report to Ray Train; the first worker adds a checkpoint."""
        self._last_checkpoint = metrics["step"]
        if self.rank:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            self.trainer.save(Path(folder), seconds=time.perf_counter() - self._started)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def finish(self) -> None:
        """Validate all layers and write the model folder."""
        if self.rank == 0:
            scores = self._validate(self.config.steps)
            self.model.summary = {
                "steps": self.config.steps,
                "captions_seen": self.config.steps
                * self.config.batch_size
                * self.config.captions_per_image,
                "minutes": round((time.perf_counter() - self._started) / 60, 2),
                "config": to_dict(self.config),
                "scores": scores,
                "versions": package_versions(),
            }
            self.model.save_pretrained(self.output / "model")
            if self._board is not None:
                self._board.close()
        ray.train.report({"step": self.config.steps})
