"""What each worker of a training does: its model, its share of the batches, its steps."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from devil.batches import Batch, TrainingBatches
from devil.config import LanguageModelConfig, TrainingConfig, TranslatorConfig, from_dict
from devil.errors import FeatureStoreError, LanguageModelError, LossError
from devil.features import FeatureStore
from devil.language_model import LanguageModel, load_language_model
from devil.model import DeViL
from devil.prefetching import prefetched
from devil.training import Trainer, learning_rate
from devil.translator import Translator
from devil.warm_start import start_from
from pipelines.training_failures import save_broken_batch
from pipelines.training_run import TrainingRun


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
    check_frozen(lm, options["language_model_digest"])
    if rank == 0:
        check_parts(store, options["features"]["parts"])
    translator_config = from_dict(TranslatorConfig, options["translator"])
    batches = TrainingBatches(
        store,
        lm,
        config,
        layers=options["layers"],
        class_tokens=translator_config.class_tokens,
        parts=list(options["features"]["parts"]),
        rank=rank,
        world=world,
    )
    model = build_model(options, store, batches, lm, device)
    if loop["start_from"]:
        start_from(model.translator, loop["start_from"], options["start_from"])
    wrapped = ray.train.torch.prepare_model(model.translator) if world > 1 else None
    trainer = Trainer(model.translator, lm, config, wrapped=wrapped, rank=rank, world=world)
    held_out = batches.held_out()
    run = TrainingRun(Path(loop["output"]), trainer, model, held_out, rank, world)
    run.resume()
    if not run.stopped:
        train_until_stopped(run, batches)
    run.finish()


def check_frozen(lm: LanguageModel, digest: str) -> None:
    """Find out whether the language model is the run's: this may be another machine.

    Raises:
        LanguageModelError: its weights are others here.
    """
    found = lm.digest()
    if found != digest:
        raise LanguageModelError(
            f"{lm.config.name} has the weights {found} on this worker, and those of the run "
            f"are {digest}; give all machines the same ones."
        )


def check_parts(store: FeatureStore, begun: Mapping[str, Any]) -> None:
    """Find out whether a store's parts are those that the run was begun with, maybe long ago.

    Raises:
        FeatureStoreError: one was extracted anew.
    """
    found = store.contents(list(begun))
    changed = [name for name, content in begun.items() if found[name] != content]
    if changed:
        raise FeatureStoreError(
            f"{len(changed)} parts of {store.root} were extracted anew since the training began "
            f"({', '.join(changed[:3])}); train on what is there now, with another --output."
        )


def train_until_stopped(run: TrainingRun, batches: TrainingBatches) -> None:
    """Take steps until the last, or until validations do not get better.

    Raises:
        LossError: the loss is not finite; names the file with the batch's keys.
    """
    trainer, config = run.trainer, run.config
    made = batches(trainer.step, config.steps)
    if trainer.device.type == "cuda":
        made = map(Batch.pinned, made)
    try:
        with contextlib.closing(prefetched(made)) as ready:
            for batch in ready:
                run.after_step(trainer.train_step(batch))
                if run.stopped:
                    return
    except LossError as error:
        rate = learning_rate(trainer.step, config)
        raise save_broken_batch(run.folder, trainer.step, rate, batches, error) from error


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
