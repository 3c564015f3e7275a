"""What can be known to be wrong with an audit before it is begun, without loading a model.

The model's `config.json` says which layers it was trained for; a look at the address says whether
there are pictures. The rest, such as what the language model makes of a query, the job finds out.
"""

import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

import fsspec
from huggingface_hub import snapshot_download

from devil.data.webdataset import IMAGE_SUFFIXES
from devil.errors import DevilError
from devil.storage import storage
from serve.audit_schemas import AuditOptions
from serve.problems import ProblemError
from serve.roots import Place

ALL_LAYERS = "all"
SUFFIXES = (*IMAGE_SUFFIXES, "tar")
MODEL_FILES = ["*.json", "*.safetensors", "*.md"]

logger = logging.getLogger("ray.serve")


class ModelFacts(NamedTuple):
    """What a model folder says of itself."""

    id: str
    folder: str
    """Of this very version."""
    version: str
    layers: list[str]


def read_model_facts(model_id: str, folder: str) -> ModelFacts:
    """A model's configuration; of one of the hub, whose files are fetched once, as it is now.

    Raises:
        ProblemError: 503, it cannot be read now.
    """
    try:
        if not Path(folder).is_dir():
            folder = snapshot_download(folder, allow_patterns=MODEL_FILES)
        found = json.loads((Path(folder) / "config.json").read_text())
        return ModelFacts(model_id, folder, found["version"], list(found["layers"]))
    except Exception as error:  # the hub client raises many kinds
        logger.error("model %s cannot be read: %r", folder, error)
        raise ProblemError(503, "The model's folder cannot be read now.") from None


def check_options(options: AuditOptions, layers: list[str]) -> None:
    """Refuse what the model cannot be asked.

    Raises:
        ProblemError: 422, with what is allowed.
    """
    unknown = [name for name in options.layers if name not in (*layers, ALL_LAYERS)]
    if unknown:
        raise ProblemError(
            422,
            f"layers: the model was not trained for {unknown[:5]}; its layers: "
            f"{', '.join([*layers, ALL_LAYERS])}.",
            "layers",
        )
    if options.calibration == "contrast" and len(options.queries) < 2:
        raise ProblemError(
            422, "calibration: contrast sets queries against each other; give two.", "calibration"
        )


def check_pictures(place: Place) -> None:
    """Refuse an address without any picture or shard.

    Raises:
        ProblemError: 422, there is none; 503, the storage does not answer.
    """
    try:
        with storage(place.address):
            if place.inside is not None:
                found = _in_folder(place.address)
            else:
                found = _in_bucket(place.address)
    except DevilError:
        raise ProblemError(503, "The pictures' storage cannot be reached now.") from None
    if not found:
        raise ProblemError(
            422, f"images: no {', '.join(SUFFIXES)} files are there; give a folder.", "images"
        )


def _in_folder(path: str) -> bool:
    if os.path.isfile(path):
        return _wanted(path)
    return any(_wanted(name) for _, _, names in os.walk(path) for name in names)


def _in_bucket(address: str) -> bool:
    fs, path = fsspec.core.url_to_fs(address)
    if fs.isfile(path):
        return _wanted(path)
    return any(_wanted(name) for _, _, names in fs.walk(path) for name in names)


def _wanted(name: str) -> bool:
    return name.lower().rpartition(".")[2] in SUFFIXES
