"""Model + photos with instance masks → where maps for names peak, beside Grad-CAM and controls.

    python pipelines/evaluate.py localisation runs/cc3m/model coco/instances_val2017.json \\
        coco/val2017 --output runs/cc3m/evaluation

For every category in a photo: pointing game, average precision over pixels, and intersection over
union of the map for the category's name. Writes `localisation.json` into the output folder, and
prints two tables: all categories, and those that Grad-CAM has an ImageNet class for; with `--train`
two more, of the categories among them that training captions name.
"""

import functools
import json
import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from devil.data.coco import CocoInstances
from devil.errors import ConfigError, DataError
from devil.evaluation.bootstrap import Interval
from devil.evaluation.localisation import (
    AREAS,
    FIXED_AREA,
    LocalisationScore,
    MapResult,
    MapScore,
    localisation_scores,
)
from devil.evaluation.localiser import SHUFFLED, Localiser, with_class
from devil.evaluation.map_setting import MapSetting
from devil.evaluation.naming import Naming
from devil.evaluation.random_control import load_random_control
from devil.evaluation.tool_versions import tool_versions
from devil.features import FeatureStore
from devil.files import write_json
from devil.model import DeViL
from devil.types import ALL_LAYERS
from pipelines.cli import absolute, known_place
from pipelines.pool import PoolConfig, over_pool, own_device
from pipelines.protocols.localisation_tables import localisation_table

logger = logging.getLogger("localisation")

LEARNED = 30
"""Training pictures whose captions must name a category before it counts as learned."""
HALVES = {"both": slice(None), "choosing": slice(0, None, 2), "reporting": slice(1, None, 2)}
"""Of the photos, by their keys in order."""
MIXTURE = "mixture"
"""Asks for the mean of all layers' standardised maps."""


@dataclass(frozen=True, kw_only=True)
class LocalisationOptions:
    """Options of the localisation protocol; every combination of the map settings is measured."""

    model: tyro.conf.Positional[str]
    """Model folder or hub id."""
    instances: tyro.conf.Positional[str]
    """COCO's instance annotations, a JSON file."""
    photos: tyro.conf.Positional[str]
    """Folder of the photos."""
    output: str
    """Folder of the results."""
    layers: tuple[str, ...] = ()
    """Layers, a+b for the mean of their maps, `all` (all at once) and `mixture` (the mean of all
    layers' maps); default: each layer, all, and mixture."""
    prompts: tuple[str, ...] = ("a photo of a",)
    """Texts that names are conditioned on; this one was the best on coco128."""
    smoothing: tuple[int, ...] = (1,)
    """Odd kernels of the average pooling before a location is read; 1 is none."""
    contrast: tuple[str, ...] = ("none",)
    """none, names (against the other categories' names), pmi (the same, calibrated first)."""
    synonyms: tuple[bool, ...] = (True,)
    """Whether other words for a category ("man", "girl" for "person") are asked for, too."""
    neighbours: tuple[float, ...] = (1.0,)
    """Weights of a location's neighbours in the map; 0 is none."""
    grad_cam_layers: tuple[str, ...] | None = None
    """Modules at which Grad-CAM is taken; default: the entrance norm of the last layer's block for
    a ViT, else the last layer."""
    train: str | None = None
    """Feature store that the model was trained on: adds a table of the categories that its captions
    name, for a word that they never use cannot have been learned."""
    random: str = ""
    """Model trained for the same backbone with random weights, the control; empty: without it."""
    half: Literal["both", "choosing", "reporting"] = "both"
    """Half of the photos: settings chosen on one are reported on the other without flattery."""
    limit: int | None = None
    """Photos, drawn at random; default: all."""
    photos_per_unit: int = 8
    """Photos that share a pass, and among which the shuffled control is drawn; at least 2."""
    resamples: int = 1000
    """Of the bootstrap."""
    seed: int = 0
    """Of the drawn photos, the controls and the bootstrap."""
    pool: PoolConfig = field(default_factory=PoolConfig)

    def __post_init__(self) -> None:
        if self.photos_per_unit < 2 or (self.limit is not None and self.limit < 2):
            raise ConfigError(
                f"photos_per_unit is {self.photos_per_unit} and limit {self.limit}; each needs at "
                "least 2, for the control takes the features of another photo."
            )
        if self.resamples < 1:
            raise ConfigError(f"resamples is {self.resamples}; at least 1 is needed.")

    def settings(self, layers: Sequence[str]) -> tuple[MapSetting, ...]:
        """All combinations, for a model with these layers."""
        wanted = self.layers or (*layers, ALL_LAYERS, MIXTURE)
        mixed = [tuple(layers) if name == MIXTURE else tuple(name.split("+")) for name in wanted]
        return tuple(
            MapSetting(
                layers=names,
                prompt=prompt,
                synonyms=synonyms,
                smoothing=smoothing,
                contrast=contrast,  # type: ignore[arg-type]
                neighbours=neighbours,
            )
            for names in mixed
            for prompt in self.prompts
            for synonyms in self.synonyms
            for smoothing in self.smoothing
            for contrast in self.contrast
            for neighbours in self.neighbours
        )


class LocalisationWorker:
    """One actor's model and annotations."""

    def __init__(self, options: LocalisationOptions) -> None:
        device = own_device()
        model = DeViL.from_pretrained(options.model, device=device)
        self.instances = CocoInstances.open(options.instances, options.photos)
        self.localiser = Localiser(
            model,
            options.settings(model.layers),
            self.instances.categories,
            grad_cam_layers=options.grad_cam_layers,
            untrained=load_random_control(options.random, model, device=device),
            seed=options.seed,
        )

    def __call__(self, unit: str) -> dict[str, Any]:
        """Score the maps of some photos, given by their keys as JSON; so are the results."""
        keys = json.loads(unit)
        return {
            "photos": len(keys),
            "results": json.dumps(self.localiser([self.instances.photos[key] for key in keys])),
        }


def localisation(options: LocalisationOptions) -> dict[str, Any]:
    """Measure a model; returns what `localisation.json` holds.

    Raises:
        ModelFolderError, DataError, ImageError: an input cannot be used.
        LayerError, QueryError, ConfigError, BackboneError: a setting cannot be measured.
    """
    instances = CocoInstances.open(options.instances, options.photos)
    model = DeViL.from_pretrained(options.model)
    localiser = Localiser(
        model,
        options.settings(model.layers),
        instances.categories,
        grad_cam_layers=options.grad_cam_layers,
        untrained=load_random_control(options.random, model),
        seed=options.seed,
    )
    if not localiser.grad_cam_layers:
        logger.warning("no Grad-CAM: %s has no ImageNet-1k head", model.backbone_config.name)
    name, version, methods = model.name, model.version, localiser.methods
    del model, localiser
    units = _units(list(instances.photos), options)
    results = _results(units, options)
    found = {r.method for r in results}
    if not found:
        raise DataError(f"no object of {options.instances} lies in what the backbone sees.")
    results.sort(key=lambda r: (methods.index(r.method), r.photo, r.category))
    score = functools.partial(localisation_scores, seed=options.seed, resamples=options.resamples)
    subsets = {"all_categories": score(results), "imagenet_categories": score(with_class(results))}
    learned = named_often(instances.categories, options.train) if options.train else ()
    if learned:
        chosen = [result for result in results if result.category in learned]
        subsets["learned_categories"] = score(chosen)
        subsets["learned_imagenet_categories"] = score(with_class(chosen))
    document = {
        "model": {"name": name, "version": version},
        "instances": options.instances,
        "images": sum(map(len, units)),
        "seed": options.seed,
        "options": asdict(options),
        "learned": list(learned),
        "areas": AREAS,
        "fixed_area": FIXED_AREA,
        "scores": {
            subset: {
                method: record(s, scores.get(method + SHUFFLED)) for method, s in scores.items()
            }
            for subset, scores in subsets.items()
            if scores
        },
        "versions": tool_versions(),
    }
    tables = [localisation_table(document, subset) for subset in document["scores"]]
    document["tables"] = [table.record() for table in tables]
    write_json(Path(options.output) / "localisation.json", document)
    for table in tables:
        print("\n" + table.text())
    print(f"\nwritten: {options.output}/localisation.json")
    return document


def named_often(categories: Sequence[str], store: str, *, least: int = LEARNED) -> tuple[str, ...]:
    """Categories that the captions of at least so many pictures of a store name."""
    naming, counts = Naming(categories), Counter()
    opened = FeatureStore.open(store)
    for part in opened.parts():
        for texts in opened.read(part, ["captions"]).column("captions").to_pylist():
            counts.update(set().union(*map(naming, texts)))
    return tuple(name for name in categories if counts[name] >= least)


def _units(keys: list[str], options: LocalisationOptions) -> list[list[str]]:
    """Parts of the photos of nearly equal size, in random order."""
    keys = sorted(keys)[HALVES[options.half]]
    if len(keys) < 2:
        half = "" if options.half == "both" else f" in the {options.half} half"
        raise DataError(
            f"{options.instances} has {len(keys)} photo with objects{half}; the control takes the "
            "features of another one, so give two or more."
        )
    random.Random(options.seed).shuffle(keys)
    keys = keys[: options.limit]
    count = max(1, len(keys) // options.photos_per_unit)
    return [part.tolist() for part in np.array_split(np.array(keys, object), count)]


def _results(units: list[list[str]], options: LocalisationOptions) -> list[MapResult]:
    local = replace(
        options,
        model=known_place(options.model),
        random=known_place(options.random),
        instances=absolute(options.instances),
        photos=absolute(options.photos),
    )
    found = []
    with tqdm(total=sum(map(len, units)), unit="photo", desc="localisation", mininterval=1) as bar:
        work = [json.dumps(unit) for unit in units]
        for done in over_pool(work, LocalisationWorker, {"options": local}, options.pool):
            for photo, category, method, score in json.loads(done["results"]):
                found.append(MapResult(photo, category, method, MapScore(*score)))
            bar.update(done["photos"])
    return found


def record(score: LocalisationScore, shuffled: LocalisationScore | None = None) -> dict[str, Any]:
    """A score as JSON, with its gaps to the same maps from another photo's features."""
    values = {
        name: value._asdict() if isinstance(value, Interval) else value
        for name, value in vars(score).items()
    }
    if shuffled is not None:
        values["gap_pointing"] = score.pointing.mean - shuffled.pointing.mean
        values["gap_precision"] = score.precision.mean - shuffled.precision.mean
    return values
