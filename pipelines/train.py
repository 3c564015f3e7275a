"""Feature store → model folder: trains the translator with Ray Train, on any number of workers.

    python pipelines/train.py features/cc3m --output runs/cc3m \\
        --language-model.name facebook/opt-125m

Writes `model/` (for `DeViL.from_pretrained`), `training/metrics.jsonl`, and TensorBoard's files
into the output folder. The same command goes on where a run was stopped, and ends at once when it
is done.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import tyro

from devil.batches import check_captions, stored_slots
from devil.config import LanguageModelConfig, TrainingConfig, TranslatorConfig, to_dict
from devil.errors import ConfigError
from devil.evaluation.captioning import check_tokenizer
from devil.features import FeatureStore
from devil.language_model import load_language_model
from devil.lock import Lock
from devil.model import DeViL
from devil.training import check_context
from devil.warm_start import check_start
from pipelines.cli import absolute, devil_error, local_folder, run_script
from pipelines.pool import check_room, start_ray
from pipelines.runs import claim_run
from pipelines.training_failures import EndAtOnce
from pipelines.training_worker import train_worker

logger = logging.getLogger("train")

RUN, LOCK = "run.json", "train.lock"
STALE_MINUTES = 2.0


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of training."""

    store: tyro.conf.Positional[str]
    """Feature store written by pipelines/extract.py."""
    output: str
    """Folder of the run; gets `model/` and `training/`. On a cluster, one that all nodes share."""
    language_model: LanguageModelConfig
    translator: TranslatorConfig = field(default_factory=TranslatorConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    layers: tuple[str, ...] = ()
    """Subset of the store's layers; empty: all."""
    name: str = "devil"
    """Name of the model, written into its card and its explanations."""
    start_from: str = ""
    """Model folder or hub id whose translator the training begins with; empty: random weights."""
    workers: int = 1
    """Data-parallel workers; the global batch stays the same, and a run may go on with others."""
    max_workers: int = 0
    """Let a run grow up to so many while the cluster has room, and shrink to `workers`, each time
    from the last checkpoint; 0: always `workers`."""
    max_failures: int = 3
    """Deaths of workers that training survives, going on from its last checkpoint; -1: all."""
    gpu: bool = False
    """Give each worker one GPU."""
    cpus_per_worker: int = 2
    """Processors, and threads, of each worker."""

    def __post_init__(self) -> None:
        least = {"workers": 1, "max_workers": 0, "max_failures": -1, "cpus_per_worker": 1}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: at least {lowest}.")
        local_folder("output", self.output)
        if 0 < self.max_workers < self.workers:
            raise ConfigError(
                f"max_workers is {self.max_workers}; allowed: 0, or at least workers, "
                f"{self.workers}."
            )


def train(options: TrainOptions) -> DeViL:
    """Train, or go on with, a translator.

    Returns:
        The trained model, loaded from its folder, without its backbone.

    Raises:
        FeatureStoreError, LanguageModelError, ModelFolderError: an input cannot be used.
        ConfigError: the output folder belongs to a run with other options, captions of
            `max_caption_tokens` do not fit the language model, a batch is too small for the
            workers, or the machine is.
        CaptionError: no caption can be trained on.
        LossError: the loss is not finite; names the file with the batch's keys.
        MissingToolError: there is no Java, or it fails, which validation needs.
        LockError: another training into this folder is running.
        DevilError: training failed in its workers.
    """
    output = Path(options.output).resolve()
    wanted = _as_begun(output / "training" / RUN, _run_description(options))
    wanted |= _check_inputs(options)
    if not (output / "training" / "finished").is_file():
        if options.training.validation_rows:
            check_tokenizer()
        start_ray()
        check_room(options.workers, options.cpus_per_worker, float(options.gpu))
    # A job that was lost is started anew at once, on another machine, and waits for its lock.
    with Lock(output / "training" / LOCK, stale_minutes=STALE_MINUTES, patient=True):
        return _train(options, wanted, output)


def _train(options: TrainOptions, wanted: Mapping[str, Any], output: Path) -> DeViL:
    if _finished(output, wanted):
        logger.info("%s is finished; nothing to do", output)
        return DeViL.from_pretrained(output / "model", load_backbone=False)
    start_ray()
    trainer = _trainer(options, wanted, output)
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        if not any((output / "training" / "ray").glob("checkpoint_*")):
            # Nothing to go on with: other options may try.
            (output / "training" / RUN).unlink(missing_ok=True)
        raise devil_error(error) or error from None
    (output / "training" / "finished").touch()
    logger.info("model: %s", output / "model")
    return DeViL.from_pretrained(output / "model", load_backbone=False)


def _trainer(
    options: TrainOptions, wanted: Mapping[str, Any], output: Path
) -> ray.train.torch.TorchTrainer:
    most = max(options.workers, options.max_workers)
    resources = {"CPU": options.cpus_per_worker} | ({"GPU": 1} if options.gpu else {})
    return ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={
            "options": wanted,
            "output": str(output),
            "start_from": _address(options.start_from),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=(options.workers, most) if options.max_workers else options.workers,
            use_gpu=options.gpu,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(output / "training"),
            failure_config=ray.train.FailureConfig(max_failures=options.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[EndAtOnce()],
        ),
    )


def _check_inputs(options: TrainOptions) -> dict[str, str]:
    """Find here what would stop every worker; returns which models those of the options are.

    They are the language model's digest, and the version of the model to start from, if any.
    """
    store = FeatureStore.open(options.store)
    layers = options.layers or tuple(store.manifest.layers)
    stored_slots(store, layers, class_tokens=options.translator.class_tokens)
    most, size = max(options.workers, options.max_workers), options.training.batch_size
    if most > size:
        raise ConfigError(
            f"batches of {size} are too small for {most} workers; use fewer of them, or a larger "
            "batch_size."
        )
    lm = load_language_model(options.language_model)
    check_context(lm, options.translator.prefix_length, options.training)
    check_captions(store, lm, options.training)
    found = {"language_model_digest": lm.digest()}
    if options.start_from:
        found["start_from"] = check_start(
            options.start_from,
            translator=options.translator,
            layers={layer: store.manifest.layers[layer] for layer in layers},
            backbone_digest=store.manifest.backbone_digest,
            language_model_digest=found["language_model_digest"],
        )
    return found


def _address(model: str) -> str:
    """A model folder as workers need it; a hub id, or nothing, as it is."""
    return str(Path(model).resolve()) if model and Path(model).is_dir() else model


def _run_description(options: TrainOptions) -> dict[str, Any]:
    """What decides a run's result besides the models that it uses.

    Kept beside it, so that no other run goes on with it.
    """
    store = FeatureStore.open(options.store)
    language_model = options.language_model
    if Path(language_model.name).is_dir():
        resolved = str(Path(language_model.name).resolve())
        language_model = dataclasses.replace(language_model, name=resolved)
    return {
        "store": absolute(options.store),
        "features": {
            "backbone_digest": store.manifest.backbone_digest,
            "extraction": to_dict(store.manifest.extraction),
            "parts": store.contents(),
        },
        "language_model": to_dict(language_model),
        "translator": to_dict(options.translator),
        "training": to_dict(options.training),
        "layers": list(options.layers),
        "name": options.name,
        "threads": options.cpus_per_worker,
    }


def _as_begun(run: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The same without parts that the store has got since the run was begun, if it was."""
    begun = json.loads(run.read_text())["features"]["parts"] if run.is_file() else {}
    parts = wanted["features"]["parts"]
    if not begun or any(parts.get(name) != content for name, content in begun.items()):
        return wanted  # and what differs is told
    if len(parts) > len(begun):
        logger.warning(
            "%s has got %d parts since the run in %s began, which goes on without them; give "
            "another --output to train on all",
            wanted["store"],
            len(parts) - len(begun),
            run.parent.parent,
        )
    return {**wanted, "features": {**wanted["features"], "parts": begun}}


def _finished(output: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether the run in `output` is finished; a new one is written down."""
    known = claim_run(output / "training" / RUN, wanted)
    return known and (output / "training" / "finished").is_file() and (output / "model").is_dir()


if __name__ == "__main__":
    run_script(TrainOptions, train, __doc__ or "")
