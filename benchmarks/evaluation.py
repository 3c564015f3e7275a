"""Every evaluation on real photos: trains what is compared, runs each protocol, writes the report.

    DEVIL_REAL_DATA=... python benchmarks/evaluation.py

What is extracted or trained already is used again. Each protocol's figures go to
`benchmarks/results/evaluation/PROTOCOL.json`, with the machine and the minutes that it took;
`docs/RESULTS.md` is made from these files, and a page to point at goes to `OUTPUT/report`.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util import ActorPool

from benchmarks.machine import describe_machine
from benchmarks.neurons import neuron_requests
from benchmarks.real_photos import (
    DECODING,
    audit_options,
    extract_options,
    real_data,
    train_options,
    write_photos,
)
from benchmarks.results import PREPARATION, ResultsOptions, results
from benchmarks.translators import ablation_options, random_features
from devil.errors import ConfigError
from devil.evaluation.map_setting import MapSetting
from devil.evaluation.perturbation_study import StudyConfig
from devil.files import write_json
from devil.model import DeViL
from devil.report.page import write_report
from devil.types import ALL_LAYERS
from pipelines.audit import audit, audited
from pipelines.cli import run_script
from pipelines.extract import extract
from pipelines.pool import PoolConfig, start_ray
from pipelines.protocols.ablation import DEVIL, RANDOM, ablation, trainings
from pipelines.protocols.captioning import CaptioningOptions, captioning, captioning_table
from pipelines.protocols.crops import CropsOptions, crops
from pipelines.protocols.localisation import LocalisationOptions, localisation
from pipelines.protocols.neurons import neurons
from pipelines.protocols.perturbation import PerturbationOptions, perturbation
from pipelines.train import train

logger = logging.getLogger("evaluation")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of the benchmark."""

    output: str = "runs/real_photos"
    """Folder of features, models and what the protocols write."""
    results: str = "benchmarks/results/evaluation"
    """Folder of the figures."""
    report: str = "docs/RESULTS.md"
    """The report."""
    only: tuple[str, ...] = ()
    """Protocols to run; empty: all."""


def evaluation(options: EvaluationOptions) -> None:
    """Run everything.

    Raises:
        DataError: `DEVIL_REAL_DATA` does not name a folder with the photos.
        ConfigError: a protocol is unknown.
    """
    data, output = real_data(), Path(options.output).resolve()
    unknown = sorted(set(options.only) - set(PROTOCOLS))
    if unknown:
        raise ConfigError(f"protocols are {unknown}; there are {', '.join(PROTOCOLS)}.")
    asked = options.only or tuple(PROTOCOLS)
    started, trained = time.perf_counter(), (output / "model").exists()
    prepare(data, output, asked)
    if not trained:
        keep(PREPARATION, {}, started, data, output, Path(options.results))
    for name in asked:
        measure(name, data, output, Path(options.results))
    results(ResultsOptions(results=options.results, report=options.report))


def measure(name: str, data: Path, output: Path, folder: Path) -> None:
    """Run one protocol and keep its figures, with the machine and the minutes."""
    started = time.perf_counter()
    keep(name, PROTOCOLS[name](data, output), started, data, output, folder)


def keep(
    name: str, found: dict[str, Any], started: float, data: Path, output: Path, folder: Path
) -> None:
    """Write what was found, with the machine and the minutes since it was `started`."""
    minutes = round((time.perf_counter() - started) / 60, 2)
    logger.info("%s took %.1f minutes", name, minutes)
    record = {**found, "minutes": minutes, "machine": describe_machine()}
    write_json(folder / f"{name}.json", without_places(record, data, output))


def without_places(record: dict[str, Any], data: Path, output: Path) -> dict[str, Any]:
    """A record without the paths of the machine that it was made on."""
    text = json.dumps(record)
    for place, name in ((data, "DEVIL_REAL_DATA"), (output, output.name)):
        text = text.replace(str(place.resolve()), name)
    return json.loads(text)


def prepare(data: Path, output: Path, asked: Sequence[str]) -> None:
    """Features, and all that is trained for the `asked` protocols: two at a time, longest first."""
    for split in ("train", "val"):
        extract(extract_options(data, output, split))
    trained: list[Callable[[], object]] = [partial(train, train_options(data, output))]
    if "neurons" in asked:
        requests = neuron_requests(data, output / "neurons")
        described = (requests["rendered_units"], requests["random_backbone"])
        trained += [partial(neurons, request) for request in described]
    if "ablation" in asked:
        for split in ("train", "val"):
            extract(random_features(data, output, split))
        planned = trainings(ablation_options(data, output))
        trained += [partial(train, training) for _, _, training in planned]
    start_ray()
    pool = ActorPool([Apart.remote() for _ in range(2)])
    for _ in pool.map_unordered(lambda apart, step: apart.run.remote(step), trained):
        pass


@ray.remote(num_cpus=0)
class Apart:
    """A process for one thing at a time."""

    def run(self, step: Callable[[], object]) -> None:
        """Do it."""
        step()


def _captioning(data: Path, output: Path) -> dict[str, Any]:
    found = captioning(
        CaptioningOptions(
            model=str(output / "model"),
            store=str(output / "features" / "val"),
            train=str(output / "features" / "train"),
            output=str(output / "captioning"),
            decoding=DECODING,
        )
    )
    write_photos(data, output / "photos")
    request = audit_options(output)
    audit(request)
    write_report(
        output / "report",
        title="DeViL on real photos",
        introduction=INTRODUCTION,
        tables=[captioning_table(found)],
        explanations=list(audited(request)),
    )
    summary = DeViL.from_pretrained(output / "model", load_backbone=False).summary
    return {**found, "training_minutes": summary["minutes"]}


INTRODUCTION = (
    "What four blocks of an ImageNet ViT-Ti/16 hold of photos that the translator never saw. "
    "Point at a location to read its caption."
)


def _perturbation(data: Path, output: Path) -> dict[str, Any]:
    return perturbation(
        PerturbationOptions(
            model=str(output / "model"),
            images=str(data / "imagenet"),
            output=str(output / "perturbation"),
            study=StudyConfig(
                settings=(
                    "blocks.5+blocks.8+blocks.11/name/none/neighbours=1/a photo of a",
                    "blocks.5+blocks.8+blocks.11/head/none/neighbours=1/a photo of a",
                    "blocks.5+blocks.8+blocks.11/name/contrast/neighbours=1/a photo of a",
                    "blocks.5+blocks.8+blocks.11/caption/none/neighbours=1",
                ),
                grad_cam_layers=("blocks.8", "blocks.11"),
                rise_masks=200,
            ),
            random=random_control(output),
            limit=16,
            pool=POOL,
        )
    )


def _crops(data: Path, output: Path) -> dict[str, Any]:
    return crops(
        CropsOptions(
            model=str(output / "model"),
            images=str(data / "coco128" / "photos"),
            instances=str(data / "coco128" / "instances.json"),
            output=str(output / "crops"),
            random=random_control(output),
            decoding=DECODING,
            locations=25,
            pool=POOL,
        )
    )


def _localisation(data: Path, output: Path) -> dict[str, Any]:
    """The setting is chosen on photos of one half; the figures are those of the other."""
    wanted = LocalisationOptions(
        model=str(output / "model"),
        instances=str(data / "coco128" / "instances.json"),
        photos=str(data / "coco128" / "photos"),
        output=str(output / "localisation_choosing"),
        train=str(output / "features" / "train"),
        layers=("blocks.8", "all", "blocks.5+blocks.8+blocks.11"),
        prompts=("", "a photo of a"),
        synonyms=(False, True),
        neighbours=(0.0, 1.0),
        half="choosing",
        limit=24,
        pool=POOL,
    )
    choosing, best = chosen_setting(wanted)
    layers = ("+".join(best.layers), "blocks.2", "blocks.5", "blocks.8", "blocks.11", ALL_LAYERS)
    reported = replace(
        with_setting(wanted, best),
        output=str(output / "localisation"),
        layers=tuple(dict.fromkeys(layers)),
        random=random_control(output),
        half="reporting",
        limit=None,
    )
    found = {**localisation(reported), "choosing": choosing}
    if reported.random:
        found["equal_training"] = equal_training(reported, best, output)
    return found


def equal_training(
    reported: LocalisationOptions, setting: MapSetting, output: Path
) -> dict[str, Any]:
    """The setting's maps by the ablation's translator that saw as many captions as the control."""
    twin = replace(
        with_setting(reported, setting),
        model=str(output / "translators" / f"{DEVIL}-0" / "model"),
        output=str(output / "localisation_equal_training"),
        grad_cam_layers=(),
    )
    found = localisation(twin)
    return {name: found[name] for name in ("model", "random_control", "scores")}


def chosen_setting(wanted: LocalisationOptions) -> tuple[dict[str, Any], MapSetting]:
    """What was measured to choose a setting, and the best one.

    Pooled features need prefixes of their own, and a contrast the scores of all names: they are
    tried with the best of the rest alone.
    """
    found, settings = localisation(wanted), list(wanted.settings(()))
    best = best_setting(found, settings)
    one = with_setting(wanted, best)
    for dearer in (
        replace(one, smoothing=(3, 5), output=f"{wanted.output}_smoothing"),
        replace(one, contrast=("names", "pmi"), output=f"{wanted.output}_contrast"),
    ):
        for subset, scores in localisation(dearer)["scores"].items():
            found["scores"][subset] |= scores
        settings += dearer.settings(())
    best = best_setting(found, settings)
    named = {setting.name: asdict(setting) for setting in settings}
    return {**found, "settings": named, "chosen": best.name}, best


def best_setting(found: Mapping[str, Any], settings: Sequence[MapSetting]) -> MapSetting:
    """The setting with the highest precision on categories that were learned."""
    scores = found["scores"]["learned_categories"]
    return max(settings, key=lambda setting: scores[setting.name]["precision"]["mean"])


def with_setting(options: LocalisationOptions, setting: MapSetting) -> LocalisationOptions:
    """Options that measure one setting alone."""
    return replace(
        options,
        layers=("+".join(setting.layers),),
        prompts=(setting.prompt,),
        smoothing=(setting.smoothing,),
        contrast=(setting.contrast,),
        synonyms=(setting.synonyms,),
        neighbours=(setting.neighbours,),
    )


def random_control(output: Path) -> str:
    """The ablation's model for a backbone with random weights; empty if it was not trained."""
    model = output / "translators" / f"{RANDOM}-0" / "model"
    if not model.is_dir():
        logger.warning("no control with a random backbone: %s is not there", model)
        return ""
    return str(model)


def _neurons(data: Path, output: Path) -> dict[str, Any]:
    return {
        name: neurons(request)
        for name, request in neuron_requests(data, output / "neurons").items()
    }


POOL = PoolConfig(workers=2, cpus_per_worker=1)

PROTOCOLS: Mapping[str, Callable[[Path, Path], dict[str, Any]]] = {
    "captioning": _captioning,
    "ablation": lambda data, output: ablation(ablation_options(data, output)),
    "localisation": _localisation,
    "perturbation": _perturbation,
    "crops": _crops,
    "neurons": _neurons,
}
"""What is run, in this order."""


if __name__ == "__main__":
    run_script(EvaluationOptions, evaluation, __doc__ or "")
