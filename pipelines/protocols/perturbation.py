"""Model + pictures → insertion and deletion of its maps, beside Grad-CAM, RISE and controls.

    python pipelines/evaluate.py perturbation runs/cc3m/model imagenet/val \\
        --output runs/cc3m/evaluation --limit 50

The model's backbone must be a classifier; it is asked about the class that it predicts. Writes
`perturbation.json` (areas with intervals, mean curves, each picture's areas) and `perturbation.png`
into the output folder, and prints the tables. On a processor the time goes into forward passes: for
each picture 2 × (steps − 1) for each method and baseline, and one for each mask of RISE.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm import tqdm

from devil.data.pictures import list_units
from devil.errors import ConfigError, DataError, ImageError
from devil.evaluation.captioning import keys_hash
from devil.evaluation.perturbation import Curve, curve_positions
from devil.evaluation.perturbation_scores import (
    PictureCurves,
    paired_differences,
    study_scores,
)
from devil.evaluation.perturbation_study import (
    DEVIL,
    PerturbationStudy,
    StudyConfig,
    StudyPicture,
)
from devil.evaluation.random_control import control_note, load_random_control, measured
from devil.evaluation.stored import derangement
from devil.evaluation.tool_versions import tool_versions
from devil.files import write_atomically, write_json
from devil.images import open_image
from devil.model import DeViL
from pipelines.cli import absolute, known_place
from pipelines.pool import PoolConfig, over_pool, own_device
from pipelines.protocols.perturbation_tables import area_table, difference_table, figure

logger = logging.getLogger("perturbation")


@dataclass(frozen=True, kw_only=True)
class PerturbationOptions:
    """Options of insertion and deletion."""

    model: tyro.conf.Positional[str]
    """Model folder or hub id; its backbone needs its classification head."""
    images: tyro.conf.Positional[str]
    """Folder or glob of pictures that the classifier knows the classes of."""
    output: str
    """Folder of the results."""
    study: StudyConfig = field(default_factory=StudyConfig)
    limit: int = 0
    """Pictures to take, in an order drawn from the seed; 0: all."""
    skip: int = 0
    """Pictures of that order to leave out first: those that settings were chosen on."""
    names: str | None = None
    """Text file with the plain name of each class in a line; default: ImageNet's 1,000."""
    random: str = ""
    """Model trained for the same backbone with random weights, the control; empty: without it."""
    pictures_per_unit: int = 4
    """Pictures that a worker takes at a time."""
    pool: PoolConfig = field(default_factory=PoolConfig)


class PerturbationWorker:
    """One actor's model."""

    def __init__(
        self, model: str, random: str, config: StudyConfig, names: Sequence[str] | None
    ) -> None:
        device = own_device()
        loaded = DeViL.from_pretrained(model, device=device)
        untrained = load_random_control(random, loaded, device=device)
        self.study = PerturbationStudy(loaded, config, names, untrained)

    def __call__(self, unit: str) -> dict[str, Any]:
        """Curves of a unit's pictures; all as JSON (Ray Data's columns hold no nested lists).

        Pictures that cannot be read, or whose control cannot, are `failed`, with the reason.
        """
        pictures, failed = [], {}
        for key, path, other in json.loads(unit):
            try:
                pictures.append(StudyPicture(key, open_image(path), open_image(other)))
            except ImageError as error:
                failed[key] = str(error)
        results = self.study(pictures) if pictures else []
        return {
            "results": json.dumps([_record(result) for result in results]),
            "failed": json.dumps(failed),
        }


def perturbation(options: PerturbationOptions) -> dict[str, Any]:
    """Measure a model's maps; returns what `perturbation.json` holds.

    Raises:
        ModelFolderError: the model cannot be used.
        BackboneError: the backbone is no classifier.
        ConfigError: the classes have other names, or an option is out of range.
        LayerError, QueryError: a setting does not fit the model.
        DataError: there are fewer than two pictures, or none can be read.
    """
    files = chosen_files(options)
    names = _names(options.names)
    model = DeViL.from_pretrained(options.model)
    untrained = load_random_control(options.random, model)
    study = PerturbationStudy(model, options.study, names, untrained)
    height, width = study.backbone.transform.crop
    models, class_names = measured(model, untrained), study.names
    del model, untrained, study
    results, failed = _measured(files, options, names)
    steps, seed = options.study.perturbation.steps, options.study.seed
    scores = study_scores(results, height * width, steps, seed)
    first = DEVIL + options.study.maps[0].label
    found = {
        **models,
        "images": absolute(options.images),
        "pictures": len(results),
        "keys_hash": keys_hash(result.key for result in results),
        "failed": failed,
        "skipped": options.skip,
        "study": asdict(options.study),
        "positions": curve_positions(steps, height * width).tolist(),
        "methods": {
            curve.name: {
                method: {"area": s.area._asdict(), "curve": s.curve} for method, s in rows.items()
            }
            for curve, rows in scores.items()
        },
        "differences": {
            curve.name: {
                other: interval._asdict()
                for other, interval in paired_differences(rows, first, seed).items()
            }
            for curve, rows in scores.items()
        },
        "areas": [
            {
                "key": result.key,
                "class": result.label,
                "name": class_names[result.label],
                "words": result.words,
                **{c.name: {m: s.areas[i] for m, s in rows.items()} for c, rows in scores.items()},
            }
            for i, result in enumerate(results)
        ],
        "versions": tool_versions(),
    }
    output = Path(options.output)
    tables = [
        area_table(scores, len(results), steps, control_note(found)),
        difference_table(scores, first, seed),
    ]
    found["tables"] = [table.record() for table in tables]
    write_json(output / "perturbation.json", found)
    write_atomically(output / "perturbation.png", figure(found))
    for table in tables:
        print("\n" + table.text())
    print(f"\nwritten: {options.output}/perturbation.json, perturbation.png")
    return found


def chosen_files(options: PerturbationOptions) -> dict[str, str]:
    """Paths of the pictures to measure, by key, in an order drawn from the seed.

    Raises:
        ConfigError: limit, skip or pictures_per_unit is out of range.
        DataError: fewer than two pictures are left, or they are in shards.
    """
    for name, least in (("limit", 0), ("skip", 0), ("pictures_per_unit", 1)):
        if getattr(options, name) < least:
            raise ConfigError(f"{name} is {getattr(options, name)}; allowed: at least {least}.")
    units = list_units(absolute(options.images), files_per_unit=1)
    files = [(unit.files[0], unit.paths[0]) for unit in units]
    if any(path.endswith(".tar") for _, path in files):
        raise DataError(f"{options.images} holds shards; give a folder or glob of picture files.")
    generator = torch.Generator().manual_seed(options.study.seed)
    order = torch.randperm(len(files), generator=generator).tolist()[options.skip :]
    chosen = [files[index] for index in order[: options.limit or None]]
    if len(chosen) < 2:
        raise DataError(
            f"{len(chosen)} of {len(files)} pictures at {options.images} are left after "
            f"skip={options.skip}; at least two are needed, for each is the other's control."
        )
    return dict(chosen)


def _measured(
    files: Mapping[str, str], options: PerturbationOptions, names: Sequence[str] | None
) -> tuple[list[PictureCurves], dict[str, str]]:
    """Results of all pictures, in the order of `files`, and why others have none."""
    keys, paths = list(files), list(files.values())
    others = derangement(len(files), options.study.seed).tolist()
    work = [[keys[i], paths[i], paths[others[i]]] for i in range(len(files))]
    size = options.pictures_per_unit
    units = [json.dumps(work[start : start + size]) for start in range(0, len(work), size)]
    arguments = {
        "model": known_place(options.model),
        "random": known_place(options.random),
        "config": options.study,
        "names": names,
    }
    found: dict[str, PictureCurves] = {}
    failed: dict[str, str] = {}
    with tqdm(total=len(files), unit="picture", desc="perturbation", mininterval=1) as bar:
        for record in over_pool(units, PerturbationWorker, arguments, options.pool):
            results = [_result(values) for values in json.loads(record["results"])]
            lost = json.loads(record["failed"])
            found |= {result.key: result for result in results}
            failed |= lost
            bar.update(len(results) + len(lost))
    if failed:
        logger.warning("%d pictures were left out: %s", len(failed), dict(list(failed.items())[:3]))
    if not found:
        raise DataError(f"no picture at {options.images} can be read.")
    return [found[key] for key in keys if key in found], failed


def _record(result: PictureCurves) -> dict[str, Any]:
    return result._asdict() | {"curves": {c.name: rows for c, rows in result.curves.items()}}


def _result(record: Mapping[str, Any]) -> PictureCurves:
    curves = {Curve(*name.split("/")): rows for name, rows in record["curves"].items()}
    return PictureCurves(**{**record, "curves": curves})


def _names(path: str | None) -> list[str] | None:
    if path is None:
        return None
    try:
        return [line.strip() for line in Path(path).read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"class names cannot be read from {path} ({error}).") from error
