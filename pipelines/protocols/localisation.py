"""Model + photos with instance masks → where maps for names peak, beside Grad-CAM and controls.

    python pipelines/evaluate.py localisation runs/cc3m/model coco/instances_val2017.json \\
        coco/val2017 --output runs/cc3m/evaluation

For every category in a photo: pointing game, average precision over pixels, and intersection over
union of the map for the category's name. Writes `localisation.json` into the output folder, and
prints two tables: all categories, and those that Grad-CAM has an ImageNet class for; with `--train`
two more, of the categories among them that training captions name.
"""

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
from devil.evaluation.captioning import keys_hash
from devil.evaluation.localisation import (
    AREAS,
    FIXED_AREA,
    LocalisationScore,
    MapResult,
    MapScore,
    localisation_gains,
    localisation_scores,
)
from devil.evaluation.localiser import (
    CENTRE,
    GRAD_CAM,
    SHUFFLED,
    UNTRAINED,
    Localiser,
    with_class,
)
from devil.evaluation.map_setting import MapSetting
from devil.evaluation.naming import Naming
from devil.evaluation.random_control import load_random_control, measured
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
        """Score the maps of some photos, given by their keys as JSON; so are the results.

        Photos that cannot be read, or fit their annotations not, are `failed`, with the reason.
        """
        keys = json.loads(unit)
        photos, failed = [], {}
        for key in keys:
            photo = self.instances.photos[key]
            try:
                photo.image()
                photo.masks()
                photos.append(photo)
            except DataError as error:
                failed[key] = str(error)
        if len(photos) == 1:
            failed[photos.pop().key] = "no photo beside it can be its control"
        return {
            "photos": len(keys),
            "results": json.dumps(self.localiser(photos) if photos else []),
            "failed": json.dumps(failed),
        }


def localisation(options: LocalisationOptions) -> dict[str, Any]:
    """Measure a model; returns what `localisation.json` holds.

    Raises:
        ModelFolderError, DataError: an input cannot be used.
        LayerError, QueryError, ConfigError, BackboneError: a setting cannot be measured.
    """
    instances = CocoInstances.open(options.instances, options.photos)
    model = DeViL.from_pretrained(options.model)
    untrained = load_random_control(options.random, model)
    localiser = Localiser(
        model,
        options.settings(model.layers),
        instances.categories,
        grad_cam_layers=options.grad_cam_layers,
        untrained=untrained,
        seed=options.seed,
    )
    if not localiser.grad_cam_layers:
        logger.warning("no Grad-CAM: %s has no ImageNet-1k head", model.backbone_config.name)
    models, methods = measured(model, untrained), localiser.methods
    del model, untrained, localiser
    units = _units(list(instances.photos), options)
    results, failed = _results(units, options)
    if not results:
        raise DataError(f"no object of {options.instances} lies in what the backbone sees.")
    keys = sorted({key for unit in units for key in unit} - set(failed))
    results.sort(key=lambda r: (methods.index(r.method), r.photo, r.category))
    subsets = {"all_categories": results, "imagenet_categories": with_class(results)}
    learned = named_often(instances.categories, options.train) if options.train else ()
    if learned:
        chosen = [result for result in results if result.category in learned]
        subsets["learned_categories"] = chosen
        subsets["learned_imagenet_categories"] = with_class(chosen)
    document = {
        **models,
        "instances": options.instances,
        "images": len(keys),
        "keys_hash": keys_hash(keys),
        "failed": failed,
        "seed": options.seed,
        "options": asdict(options),
        "learned": list(learned),
        "areas": AREAS,
        "fixed_area": FIXED_AREA,
        "scores": {name: _scores(rows, options) for name, rows in subsets.items() if rows},
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


def _results(
    units: list[list[str]], options: LocalisationOptions
) -> tuple[list[MapResult], dict[str, str]]:
    """Scores of all maps, and why some photos have none."""
    local = replace(
        options,
        model=known_place(options.model),
        random=known_place(options.random),
        instances=absolute(options.instances),
        photos=absolute(options.photos),
    )
    found: list[MapResult] = []
    failed: dict[str, str] = {}
    with tqdm(total=sum(map(len, units)), unit="photo", desc="localisation", mininterval=1) as bar:
        work = [json.dumps(unit) for unit in units]
        for done in over_pool(work, LocalisationWorker, {"options": local}, options.pool):
            for photo, category, method, score in json.loads(done["results"]):
                found.append(MapResult(photo, category, method, MapScore(*score)))
            failed |= json.loads(done["failed"])
            bar.update(done["photos"])
    if failed:
        logger.warning("%d photos were left out: %s", len(failed), dict(list(failed.items())[:3]))
    return found, failed


def _scores(results: Sequence[MapResult], options: LocalisationOptions) -> dict[str, Any]:
    """Scores of one subset of categories by method, as JSON.

    A setting's has what it scores above its own controls and above its rivals, on the same maps.
    """
    drawn: dict[str, Any] = {"seed": options.seed, "resamples": options.resamples}
    scores = localisation_scores(results, **drawn)
    rivals = [name for name in scores if name.startswith(GRAD_CAM) or name == CENTRE]
    found = {}
    for method, score in scores.items():
        found[method] = record(score)
        own = [method + ending for ending in (SHUFFLED, UNTRAINED) if method + ending in scores]
        if own:
            gains = localisation_gains(results, method, [*own, *rivals], **drawn)
            found[method]["above"] = {
                name: {measure: gain._asdict() for measure, gain in by_measure.items()}
                for name, by_measure in gains.items()
            }
    return found


def record(score: LocalisationScore) -> dict[str, Any]:
    """A score as JSON."""
    return {
        name: value._asdict() if isinstance(value, Interval) else value
        for name, value in vars(score).items()
    }
