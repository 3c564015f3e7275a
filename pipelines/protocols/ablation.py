"""Trains one translator in several ways, and shows what each dropout, layer and baseline is worth.

    python pipelines/evaluate.py ablation features/cc3m features/cc3m-val --output runs/ablation \\
        --language-model.name facebook/opt-125m --random features/random features/random-val

DeViL, Table 2: without token dropout a layer alone says little; ClipCap (arXiv 2111.09734) reads
the last layer only, without dropout, through a linear expansion; a backbone with random weights
and a translator of its own is the control. All see the same number of captions. Trainings that are
finished are used again; writes `ablation.json`.
"""

import dataclasses
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from devil.config import (
    DecodingConfig,
    LanguageModelConfig,
    TrainingConfig,
    TranslatorConfig,
    to_dict,
)
from devil.errors import ConfigError
from devil.evaluation.captioning import QUICK, CaptionScores, check_tokenizer
from devil.evaluation.stored import (
    CONTROLS,
    evaluate_stored,
    stored_keys,
    stored_rows,
    warn_of_shared_rows,
)
from devil.evaluation.tool_versions import tool_versions
from devil.features import FeatureStore
from devil.files import write_json
from devil.model import DeViL
from devil.report.table import Cell, ReportTable
from devil.types import ALL_LAYERS
from pipelines.pool import own_device
from pipelines.train import TrainOptions, train

logger = logging.getLogger("ablation")

DEVIL, RANDOM = "token_and_feature_dropout", "random_backbone"
CLIPCAP_TOKENS = 10
"""Tokens into which ClipCap expands the vector (arXiv 2111.09734 §4)."""
METRICS = QUICK


@dataclass(frozen=True, kw_only=True)
class AblationOptions:
    """Options of the ablation."""

    store: tyro.conf.Positional[str]
    """Feature store to train on, written by pipelines/extract.py."""
    held_out: tyro.conf.Positional[str]
    """Feature store of other pictures, which are scored."""
    output: str
    """Folder of the trainings and of the results."""
    language_model: LanguageModelConfig
    translator: TranslatorConfig = field(default_factory=TranslatorConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    random: tuple[str, str] | None = None
    """The same two stores from the backbone with `--backbone.weights random`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the dropouts' trainings; the baselines have the first alone."""
    variants: tuple[str, ...] = ()
    """Subset of what is trained; empty: everything."""
    decoding: DecodingConfig = field(default_factory=lambda: DecodingConfig(max_new_tokens=30))
    gpu: bool = False
    """Give each training a GPU."""
    cpus_per_worker: int = 2
    """Processors, and threads, of each training."""


def _without(options: TrainOptions, **changes: float | bool) -> TrainOptions:
    return dataclasses.replace(options, training=dataclasses.replace(options.training, **changes))


def _clipcap(options: TrainOptions) -> TrainOptions:
    layers = options.layers or tuple(FeatureStore.open(options.store).manifest.layers)
    translator = dataclasses.replace(options.translator, tokens_per_layer=CLIPCAP_TOKENS)
    plain = _without(options, token_dropout=0.0, feature_dropout=False)
    return dataclasses.replace(plain, layers=layers[-1:], translator=translator)


VARIANTS: Mapping[str, Callable[[TrainOptions], TrainOptions]] = {
    DEVIL: lambda options: options,
    "token_dropout": lambda options: _without(options, feature_dropout=False),
    "no_dropout": lambda options: _without(options, token_dropout=0.0, feature_dropout=False),
    "clipcap": _clipcap,
}
"""How each translator's training differs from DeViL's, the first."""

BASELINES = ("clipcap", RANDOM)
"""Trained with the first seed alone."""


def trainings(options: AblationOptions) -> list[tuple[str, int, TrainOptions]]:
    """Every (variant, seed) with its training; all variants of a seed before the next seed.

    Raises:
        ConfigError: there are no seeds, one stands twice, or a variant is unknown.
    """
    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        raise ConfigError(f"seeds are {options.seeds}; give one or more, each once.")
    unknown = sorted(set(options.variants) - set(VARIANTS))
    if unknown:
        raise ConfigError(f"variants are {unknown}; there are {', '.join(VARIANTS)}.")
    planned = []
    for seed in options.seeds:
        for name in options.variants or VARIANTS:
            if name in BASELINES and seed != options.seeds[0]:
                continue
            planned.append((name, seed, VARIANTS[name](_training(options, name, seed))))
        if options.random and seed == options.seeds[0]:
            base = _training(options, RANDOM, seed)
            planned.append((RANDOM, seed, dataclasses.replace(base, store=options.random[0])))
    return planned


def _training(options: AblationOptions, name: str, seed: int) -> TrainOptions:
    return TrainOptions(
        store=options.store,
        output=str(Path(options.output) / f"{name}-{seed}"),
        language_model=options.language_model,
        translator=options.translator,
        training=dataclasses.replace(options.training, seed=seed),
        name=f"{name}-{seed}",
        gpu=options.gpu,
        cpus_per_worker=options.cpus_per_worker,
    )


def ablation(options: AblationOptions) -> dict[str, Any]:
    """Train what is not trained yet, and score all; returns what `ablation.json` holds.

    Raises:
        FeatureStoreError, LanguageModelError, ConfigError: an input cannot be used; as
            `pipelines.train.train`; or the random control's features are not of random weights, or
            of other pictures.
        MissingToolError: there is no Java, or it fails; CIDEr needs it.
    """
    planned = trainings(options)
    _check(options)
    records: dict[str, list[dict[str, Any]]] = {}
    for name, seed, training in tqdm(planned, desc="ablation", unit="training"):
        model = train(training)
        records.setdefault(name, []).append({"seed": seed, **_measure(options, name, model)})
        logger.info("%s, seed %d: %s", name, seed, records[name][-1])
    results = {
        "store": options.store,
        "held_out": options.held_out,
        "language_model": options.language_model.name,
        "translator": to_dict(options.translator),
        "training": to_dict(options.training),
        "captions_seen": _captions_seen(options.training),
        "variants": {
            name: {"runs": found, "cider": summarise(found)} for name, found in records.items()
        },
        "controls": _controls(options, planned[0][2]),
        "versions": tool_versions(),
    }
    write_json(Path(options.output) / "ablation.json", results)
    print("\n" + ablation_table(results).text())
    print(f"\nwritten: {options.output}/ablation.json")
    return results


def _check(options: AblationOptions) -> None:
    """Find before the first training what would be found after the last."""
    check_tokenizer()
    warn_of_shared_rows(FeatureStore.open(options.held_out), FeatureStore.open(options.store))
    if options.random:
        for path in options.random:
            backbone = FeatureStore.open(path).manifest.backbone
            if backbone.weights != "random":
                raise ConfigError(
                    f"{path} holds features of {backbone.name} with weights {backbone.weights}; "
                    "the control needs those of --backbone.weights random."
                )
        stores = (options.held_out, options.random[1])
        ours, theirs = (stored_keys(FeatureStore.open(path)) for path in stores)
        if ours != theirs:
            raise ConfigError(
                f"{options.random[1]} holds other pictures than {options.held_out} "
                f"({len(theirs - ours)} more, {len(ours - theirs)} fewer); the control needs "
                "the same ones."
            )


def _captions_seen(training: TrainingConfig) -> int:
    return training.steps * training.batch_size * training.captions_per_image


def _held_out(options: AblationOptions, name: str) -> FeatureStore:
    random = name == RANDOM and options.random
    return FeatureStore.open(random[1] if random else options.held_out)


def _measure(options: AblationOptions, name: str, model: DeViL) -> dict[str, Any]:
    """Scores of all layers at once, and of each alone."""
    found = evaluate_stored(
        model.to(own_device()),
        stored_rows(model, _held_out(options, name)),
        controls=(),
        decoding=options.decoding,
        metrics=METRICS,
    )
    return {
        "scores": {layer: scores.record() for layer, scores in found.layers.items()},
        "minutes": model.summary["minutes"],
        "parameters": model.translator.parameter_count(),
    }


def _controls(options: AblationOptions, training: TrainOptions) -> dict[str, Any]:
    """What needs no translator, and the first one on features that say nothing of the picture."""
    model = DeViL.from_pretrained(Path(training.output) / "model", load_backbone=False)
    scores: Mapping[str, CaptionScores] = evaluate_stored(
        model,
        stored_rows(model, FeatureStore.open(options.held_out)),
        layers=(ALL_LAYERS,),
        controls=CONTROLS,
        train=stored_rows(model, FeatureStore.open(options.store)),
        decoding=options.decoding,
        metrics=METRICS,
    ).controls
    return {name: found.record() for name, found in scores.items()}


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of CIDEr over the seeds, of all layers and of each alone."""
    return {
        layer: _spread([run["scores"][layer]["cider"] for run in runs])
        for layer in runs[0]["scores"]
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    found = {"mean": statistics.fmean(values)}
    return found | {"deviation": statistics.stdev(values)} if len(values) > 1 else found


def ablation_table(results: Mapping[str, Any]) -> ReportTable:
    """A row for each variant and control: CIDEr of all layers at once, and of each alone."""
    variants = results["variants"]
    layers = list(dict.fromkeys(layer for found in variants.values() for layer in found["cider"]))
    first = next(iter(variants.values()))["runs"][0]["scores"][ALL_LAYERS]
    blank = (None,) * len(layers)  # but the first, and the seeds
    return ReportTable(
        title="Ablation",
        caption=(
            f"CIDEr on {first['rows']} pictures (keys {first['keys_hash']}), all layers at once "
            "and each alone, mean and deviation over seeds; "
            f"{results['captions_seen']:,} captions each"
        ),
        columns=("translator", *layers, "seeds"),
        rows=(
            *(
                (
                    name.replace("_", " "),
                    *(_spread_text(found["cider"].get(layer)) for layer in layers),
                    len(found["runs"]),
                )
                for name, found in variants.items()
            ),
            *(
                (f"control: {name.replace('_', ' ')}", f"{s['cider']:.3f}", *blank)
                for name, s in results["controls"].items()
            ),
        ),
    )


def _spread_text(spread: Mapping[str, float] | None) -> Cell:
    if spread is None:
        return None
    deviation = f" ± {spread['deviation']:.3f}" if "deviation" in spread else ""
    return f"{spread['mean']:.3f}{deviation}"
