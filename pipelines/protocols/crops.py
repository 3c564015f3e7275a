"""Model + pictures → how much of the picture the captions of locations speak of, by layer.

    python pipelines/evaluate.py crops runs/cc3m/model photos/ --output runs/cc3m/crops \\
        --image-text.name ViT-B-32/openai --instances instances.json

Two measures, each beside its controls on the same pictures: an image-text model says which centre
crop the central caption fits (DeViL, Fig. 7); and with COCO's object masks, whether a caption names
the object that covers the field around its location. Writes `crops.json` into the output folder
and prints the tables.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import tyro
from tqdm import tqdm

from devil.config import DecodingConfig
from devil.data.coco import CocoInstances
from devil.data.pictures import Unit, list_units
from devil.errors import ConfigError, DataError
from devil.evaluation.captioning import keys_hash
from devil.evaluation.crops import SIZES, crop_coherence, crop_sizes
from devil.evaluation.field_coherence import (
    FieldRow,
    field_coherence,
    named_matrix,
)
from devil.evaluation.fields import FieldConfig
from devil.evaluation.image_text import LOCAL, NEEDS, ImageTextConfig, ImageTextModel
from devil.evaluation.location_captions import mean_caption
from devil.evaluation.naming import Naming
from devil.evaluation.random_control import control_note, load_random_control, measured
from devil.evaluation.tool_versions import tool_versions
from devil.files import write_json
from devil.model import DeViL
from devil.report.table import ReportTable
from pipelines.cli import absolute, known_place
from pipelines.pool import PoolConfig, over_pool, own_device
from pipelines.protocols.crop_tables import crop_tables, field_table
from pipelines.protocols.crop_worker import BATCH, CropsWorker

logger = logging.getLogger("crops")


@dataclass(frozen=True, kw_only=True)
class CropsOptions:
    """Options of crop coherence."""

    model: tyro.conf.Positional[str]
    """Model folder or hub id."""
    images: tyro.conf.Positional[str]
    """Folder or glob of pictures, or webdataset shards; with instances, their photos' folder."""
    output: str
    """Folder of the results."""
    image_text: ImageTextConfig = field(default_factory=ImageTextConfig)
    instances: str = ""
    """COCO instance annotations of the photos; empty: no masks, so no naming of objects."""
    random: str = ""
    """Model trained for the same backbone with random weights, the control; empty: without it."""
    layers: tuple[str, ...] = ()
    """Layer names, or `all` for all at once; empty: each layer, then all."""
    sizes: tuple[int, ...] = SIZES
    """Sides of the centre crops, in pixels of the backbone's input; the whole is added."""
    fields: FieldConfig = field(default_factory=FieldConfig)
    locations: int = 49
    """Locations of each layer whose captions are compared with masks; 0: all."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    limit: int = 0
    """Pictures at most, the first ones; 0: all."""
    seed: int = 0
    """Of the drawn locations, and of the controls with other pictures' captions."""
    pool: PoolConfig = field(default_factory=PoolConfig)


def crops(options: CropsOptions) -> dict[str, Any]:
    """Measure the coherence of captions with the picture around them.

    Returns:
        What `crops.json` holds.

    Raises:
        ConfigError: neither an image-text model nor instances were given.
        ModelFolderError, LayerError, BackboneError, DataError: an input cannot be used.
    """
    if not options.image_text.name and not options.instances:
        raise ConfigError(
            "there is nothing to compare captions with; give --image-text.name, --instances, or "
            f"both. For an image-text model, {NEEDS}."
        )
    device = own_device()
    model = DeViL.from_pretrained(options.model, device=device)
    layers = model.chosen_layers(options.layers or None)
    untrained = load_random_control(options.random, model)
    judge = ImageTextModel(options.image_text, device=device) if options.image_text.name else None
    units, naming = _units(_resolved(options))
    assert model.backbone is not None
    sizes = crop_sizes(options.sizes, model.backbone.transform.crop[0]) if judge else ()
    captions = {layer: mean_caption(model, layer, options.decoding) for layer in layers}
    found = _describe(units, options)
    results: dict[str, Any] = {
        **measured(model, untrained),
        "images": options.images,
        "pictures": len(found.keys),
        "failed": list(found.failed),
        "keys_hash": keys_hash(found.keys),
        "seed": options.seed,
        "decoding": asdict(options.decoding),
        "mean_captions": captions,
        "image_text": {"not_run": f"no image-text model was given; {NEEDS}"},
        "objects": {"not_run": "no instance masks were given"},
        "versions": tool_versions(),
    }
    tables, note = [], control_note(results)
    if judge is not None:
        results["image_text"], shown = _image_text(found, captions, judge, sizes, options, note)
        tables += shown
    if naming is not None:
        results["objects"], shown = _objects(found, captions, naming, options, note)
        tables.append(shown)
    results["tables"] = [table.record() for table in tables]
    path = write_json(Path(options.output) / "crops.json", results)
    results = json.loads(path.read_text())  # tuples are lists there
    for table in tables:
        print("\n" + table.text())
    for name in ("image_text", "objects"):
        if "not_run" in results[name]:
            print(f"\n{name} was not run: {results[name]['not_run']}")
    print(f"\nwritten: {path}")
    return results


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Rows of all pictures, in the units' order."""

    keys: tuple[str, ...]
    failed: tuple[str, ...]
    tensors: Mapping[str, np.ndarray]


def _units(options: CropsOptions) -> tuple[list[Unit], Naming | None]:
    """Units of work; with instances, of the annotated photos alone."""
    if not options.instances:
        units = list_units(options.images, files_per_unit=BATCH)
        if options.limit and not any(path.endswith(".tar") for path in units[0].paths):
            keep = -(-options.limit // BATCH)
            units = units[:keep]
        return units, None
    coco = CocoInstances.open(options.instances, options.images)
    photos = list(coco.photos.values())[: options.limit or None]
    chunks = [photos[start : start + BATCH] for start in range(0, len(photos), BATCH)]
    units = [
        Unit(f"{i:05d}", tuple(p.path for p in chunk), tuple(p.key for p in chunk))
        for i, chunk in enumerate(chunks)
    ]
    return units, Naming(coco.categories)


def _describe(units: Sequence[Unit], options: CropsOptions) -> _Found:
    arguments = {"options": _resolved(options)}
    records = []
    with tqdm(total=len(units), unit="unit", desc="crops", mininterval=1) as bar:
        work = [json.dumps(unit) for unit in units]
        for record in over_pool(work, CropsWorker, arguments, options.pool):
            records.append(record)
            bar.update()
    records.sort(key=lambda record: record["unit"])
    keys = [key for record in records for key in json.loads(record["keys"])]
    failed = [key for record in records for key in json.loads(record["failed"])]
    parts = [safetensors.numpy.load(record["tensors"]) for record in records]
    names = sorted({name for part in parts for name in part})
    limit = options.limit or None
    tensors = {n: np.concatenate([p[n] for p in parts if n in p])[:limit] for n in names}
    if failed:
        logger.warning("%d pictures could not be read: %s", len(failed), failed[:5])
    if len(keys) < 2:
        raise DataError(f"{options.images}: two readable pictures are needed, {len(keys)} found.")
    return _Found(keys=tuple(keys[:limit]), failed=tuple(failed), tensors=tensors)


def _resolved(options: CropsOptions) -> CropsOptions:
    """The same options with addresses as workers need them."""
    judge = options.image_text
    judge = replace(judge, name=known_place(judge.name.removeprefix(LOCAL)))
    if judge.weights != "pretrained":
        judge = replace(judge, weights=known_place(judge.weights))
    return replace(
        options,
        model=known_place(options.model),
        random=known_place(options.random),
        images=absolute(options.images),
        instances=absolute(options.instances) if options.instances else "",
        image_text=judge,
    )


def _image_text(
    found: _Found,
    said: Mapping[str, str],
    judge: ImageTextModel,
    sizes: Sequence[int],
    options: CropsOptions,
    note: str,
) -> tuple[dict[str, Any], list[ReportTable]]:
    """Crop coherence and its tables; `said` is the caption of each layer's mean feature."""
    scores = crop_coherence(
        found.tensors["crops"],
        found.tensors["texts"],
        judge.texts(list(said.values())).numpy(),
        layers=tuple(said),
        sizes=sizes,
        untrained=found.tensors.get("texts.random"),
        seed=options.seed,
    )
    results = {
        **asdict(options.image_text),
        "digest": judge.digest,
        "sizes": list(sizes),
        "layers": {layer: asdict(score) for layer, score in scores.items()},
    }
    return results, crop_tables(scores, sizes, len(found.keys), note)


def _objects(
    found: _Found, said: Mapping[str, str], naming: Naming, options: CropsOptions, note: str
) -> tuple[dict[str, Any], ReportTable]:
    """Field coherence and its table."""
    count, scores = len(naming.categories), {}

    def unpacked(name: str) -> np.ndarray:
        return np.unpackbits(found.tensors[name], axis=-1, count=count).astype(bool)

    for layer, caption in said.items():
        named, covered = unpacked(f"named.{layer}"), found.tensors[f"covered.{layer}"]
        control = f"random.{layer}"
        scores[layer] = field_coherence(
            [FieldRow(named=n, covered=c) for n, c in zip(named, covered, strict=True)],
            named_matrix(naming, [caption])[0],
            naming.categories,
            options.fields.names,
            untrained=list(unpacked(control)) if control in found.tensors else None,
            seed=options.seed,
        )
    results = {
        "instances": options.instances,
        "fields": asdict(options.fields),
        "locations": options.locations,
        "layers": {layer: asdict(score) for layer, score in scores.items()},
    }
    return results, field_table(scores, len(found.keys), note)
