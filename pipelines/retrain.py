"""New shards → a new version of the model, released if it is good enough.

    python pipelines/retrain.py 'photos/*.tar' --store features/all --held-out features/fixed \\
        --models models --backbone.name open_clip:ViT-B-32/openai \\
        --language-model.name facebook/opt-125m
    python pipelines/retrain.py --models models --rollback

Extracts what the store lacks, trains on all of it, scores the new model and the current one on the
same held-out features, and moves the switch `models/current.json` if the gate lets it pass; else
ends with an error, and the current version stays. A killed run goes on when it is started again;
where nothing is new it ends at once. `DeViL.from_pretrained("models")` and `serve` use the current
version.
"""

import dataclasses
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from devil.batches import stored_slots
from devil.config import (
    BackboneConfig,
    DecodingConfig,
    ExtractionConfig,
    LanguageModelConfig,
    SourceConfig,
    TrainingConfig,
    TranslatorConfig,
)
from devil.errors import (
    ConfigError,
    FeatureStoreError,
    GateError,
    LayerError,
    ModelFolderError,
)
from devil.evaluation.gate import GateConfig, Verdict, gate_scores, judge
from devil.evaluation.stored import warn_of_shared_rows
from devil.features import FeatureStore
from devil.files import write_json
from devil.folder import read_config
from devil.lock import Lock
from devil.model import DeViL
from devil.release import Release
from devil.types import ALL_LAYERS
from devil.versions import ModelVersions
from pipelines.cli import absolute, local_folder, run_script
from pipelines.extract import ExtractOptions, extract
from pipelines.pool import PoolConfig, own_device
from pipelines.train import TrainOptions, train

logger = logging.getLogger("retrain")

GATE, INPUTS, RUNS = "gate.json", "inputs.json", "runs"
HOW = ("output", "start_from", "workers", "max_workers", "max_failures", "gpu")
"""Options of training that do not decide its result."""


@dataclass(frozen=True, kw_only=True)
class RetrainOptions:
    """Options of retraining."""

    shards: tyro.conf.Positional[str]
    """Shards, old and new: a folder, a .tar, or a glob; any fsspec address."""
    store: str
    """Feature store that grows with them; all that it holds is trained on."""
    held_out: str
    """Feature store of pictures that are never trained on, the same for every version."""
    models: str
    """Folder of the versions, with the runs and the switch. On a cluster, one that all share."""
    backbone: BackboneConfig
    language_model: LanguageModelConfig
    source: SourceConfig = field(default_factory=SourceConfig)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    translator: TranslatorConfig = field(default_factory=TranslatorConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    warm_start: bool = False
    """Train on from the current version; else from the beginning."""
    name: str = "devil"
    """Name of the model."""
    workers: int = 1
    """Data-parallel workers of the training."""
    max_workers: int = 0
    """Let the training grow up to so many while the cluster has room; 0: always `workers`."""
    max_failures: int = 3
    """Deaths of workers that the training survives; -1: all."""
    gpu: bool = False
    """Give each of them one GPU."""
    cpus_per_worker: int = 2
    """Processors, and threads, of each of them."""
    keep: int = 3
    """Versions, and runs, that stay on the disk."""
    stale_minutes: float = 10.0
    """A retraining on another machine that has been silent for so long is taken to be dead."""

    def __post_init__(self) -> None:
        if self.keep < 2:
            raise ConfigError(f"keep is {self.keep}; allowed: at least 2, to be able to go back.")
        local_folder("models", self.models)
        _training(self, Path())  # finds bad numbers of workers before the extraction


@dataclass(frozen=True, kw_only=True)
class RollbackOptions:
    """Options of `--rollback`."""

    models: str
    """Folder of the versions."""


def retrain(options: RetrainOptions) -> Verdict | None:
    """Extract, train, compare, and release.

    Returns:
        The gate's verdict; None if these data and options have been released before.

    Raises:
        GateError: the new model is not good enough; the current one stays.
        ModelFolderError: the current version is missing or corrupt, or of another backbone.
        FeatureStoreError: the held-out features are of another backbone, or not whole.
        LayerError: the gate's layer is not one of the model's.
        LockError: a retraining into this folder is running.
        DevilError: as `extract` and `train`.
    """
    versions = ModelVersions(options.models)
    held_out = FeatureStore.open(absolute(options.held_out))
    lock = Lock(versions.root / "retrain.lock", stale_minutes=options.stale_minutes, patient=True)
    with lock:
        versions.check_current()
        extract(_extract_options(options))
        store = FeatureStore.open(absolute(options.store))
        _check_comparison(held_out, store, options, versions)
        run = _claim_run(options, store, versions)
        released = _released(run, versions)
        if released:
            logger.info("nothing new: these data and options have become version %s", released)
            return None
        candidate = train(_train_options(options, run, versions))
        verdict = _compare(candidate, held_out, options, versions)
        lock.check()
        write_json(run / GATE, verdict.to_dict())
        _prune_runs(run.parent, options.keep)
        _release(candidate, verdict, run, options, versions)
    return verdict


def rollback(options: RollbackOptions) -> Release:
    """Make the last good version before the current one current again, whatever else is running.

    Raises:
        ModelFolderError: there is no earlier version, or it is corrupt.
    """
    release = ModelVersions(options.models).rollback()
    logger.info("%s is current again, %s is withdrawn", release.current, release.withdrawn[-1])
    return release


def _extract_options(options: RetrainOptions) -> ExtractOptions:
    return ExtractOptions(
        shards=options.shards,
        store=options.store,
        backbone=options.backbone,
        source=options.source,
        extraction=options.extraction,
        pool=options.pool,
    )


def _train_options(options: RetrainOptions, run: Path, versions: ModelVersions) -> TrainOptions:
    start = json.loads((run / INPUTS).read_text())["start_from"]
    folder = str(versions.folder(start)) if start else ""
    return dataclasses.replace(_training(options, run), start_from=folder)


def _training(options: RetrainOptions, run: Path) -> TrainOptions:
    return TrainOptions(
        store=absolute(options.store),
        output=str(run),
        language_model=options.language_model,
        translator=options.translator,
        training=options.training,
        name=options.name,
        workers=options.workers,
        max_workers=options.max_workers,
        max_failures=options.max_failures,
        gpu=options.gpu,
        cpus_per_worker=options.cpus_per_worker,
    )


def _check_comparison(
    held_out: FeatureStore, store: FeatureStore, options: RetrainOptions, versions: ModelVersions
) -> None:
    """Find before the training what the comparison after it would stumble over."""
    found, wanted = (s.manifest.backbone_digest for s in (held_out, store))
    if found != wanted:
        raise FeatureStoreError(
            f"{held_out.root} holds features of a backbone with weights {found}, and {store.root} "
            f"of one with weights {wanted}; extract the held-out pictures with the same backbone."
        )
    rows, counted = sum(part[0] for part in held_out.contents().values()), held_out.manifest.rows
    if not rows or rows != counted:
        raise FeatureStoreError(
            f"{held_out.root} holds {rows} rows, and its manifest counts {counted}: its extraction "
            "has not ended. Start that again, and this when it is done."
        )
    _check_layers(held_out, tuple(store.manifest.layers), options.translator.class_tokens, options)
    release = versions.current()
    if release is not None:
        current = read_config(versions.folder(release.current))
        if current["backbone_digest"] != found:
            raise ModelFolderError(
                f"the current version, {release.current}, is of a backbone with weights "
                f"{current['backbone_digest']}, and {held_out.root} of one with weights {found}: "
                "they cannot be compared. Give models of another backbone another --models."
            )
        _check_layers(
            held_out, tuple(current["layers"]), current["translator"]["class_tokens"], options
        )
    warn_of_shared_rows(held_out, store)


def _check_layers(
    held_out: FeatureStore, layers: Sequence[str], class_tokens: bool, options: RetrainOptions
) -> None:
    """Whether a model of these layers can be scored by the gate."""
    stored_slots(held_out, layers, class_tokens=class_tokens)
    if options.gate.layer not in (ALL_LAYERS, *layers):
        raise LayerError(
            f"gate.layer is {options.gate.layer!r}; allowed: {', '.join((ALL_LAYERS, *layers))}."
        )


def _claim_run(options: RetrainOptions, store: FeatureStore, versions: ModelVersions) -> Path:
    """The folder of the run on these data with these options, made if it is new.

    The version from which a warm start goes on is no part of the name, and stays what it was when
    the run was first started: a release would else make every finished run a new one.
    """
    parts = store.contents()
    inputs: dict[str, Any] = {
        "parts": parts,
        "backbone_digest": store.manifest.backbone_digest,
        "training": {
            name: value
            for name, value in dataclasses.asdict(_training(options, Path())).items()
            if name not in HOW
        },
        "warm_start": options.warm_start,
    }
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:8]
    run = versions.root / RUNS / f"{len(parts)}-shards-{digest}"
    if not (run / INPUTS).is_file():
        release = versions.current() if options.warm_start else None
        write_json(run / INPUTS, {**inputs, "start_from": release.current if release else None})
    return run


def _released(run: Path, versions: ModelVersions) -> str | None:
    """The version that this run's model has become, be it current, earlier or withdrawn."""
    config, release = run / "model" / "config.json", versions.current()
    if release is None or not config.is_file():
        return None
    name = versions.find(json.loads(config.read_text())["version"])
    return name if name in (*release.names(), *release.withdrawn) else None


def _compare(
    candidate: DeViL, held_out: FeatureStore, options: RetrainOptions, versions: ModelVersions
) -> Verdict:
    """Score the new model and the current one on the same rows."""
    device = own_device()
    new = gate_scores(candidate.to(device), held_out, options.gate, options.decoding)
    release = versions.current()
    if release is None:
        return judge(new, None, options.gate)
    current = DeViL.from_pretrained(
        versions.folder(release.current), device=device, load_backbone=False
    )
    old = gate_scores(current, held_out, options.gate, options.decoding)
    return judge(new, old, options.gate)


def _release(
    candidate: DeViL, verdict: Verdict, run: Path, options: RetrainOptions, versions: ModelVersions
) -> None:
    current = verdict.current and versions.find(verdict.current.version)
    if not verdict.passed:
        raise GateError(
            f"{run / 'model'} is not released: {verdict.reason}. {current or 'Nothing'} stays "
            f"current; the scores are in {run / GATE}."
        )
    name = versions.add(candidate)
    versions.promote(name, instead_of=current, why=verdict.to_dict())
    versions.prune(options.keep)
    logger.info("%s is current: %s", name, verdict.reason)


def _prune_runs(runs: Path, keep: int) -> None:
    """Remove all runs but the last ones, which hold checkpoints; versions are kept elsewhere."""
    found = [file.parent for file in runs.glob(f"*/{INPUTS}")]
    for run in sorted(found, key=lambda run: run.stat().st_mtime_ns)[:-keep]:
        shutil.rmtree(run)


def main(arguments: list[str]) -> None:
    """Retrain, or go back."""
    description = __doc__ or ""
    if "--rollback" in arguments:
        rest = [argument for argument in arguments if argument != "--rollback"]
        run_script(RollbackOptions, rollback, description, arguments=rest)
    else:
        run_script(RetrainOptions, retrain, description, arguments=arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
