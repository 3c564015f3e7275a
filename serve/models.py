"""Which models are served: ids, their folders, and what clients may know of them.

Reads `config.json` alone, so that the ingress needs no torch.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devil.errors import ModelFolderError
from devil.release import read_release, version_folder
from serve.problems import ProblemError
from serve.schemas import LayerDescription, ModelDescription

CONFIG = "config.json"


def served_models(text: str) -> dict[str, str]:
    """Folders (absolute) or hub ids by model id, the default first.

    Args:
        text: `FOLDER`, or several with commas between; `NAME=FOLDER` gives one another id than
            the name that its `config.json` holds.

    Raises:
        ModelFolderError: a folder is not there, or two models have one id.
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, folder = _split(part)
        folder = _found(folder)
        key = name or _recorded_name(folder)
        if key in found:
            raise ModelFolderError(
                f"two models are called {key!r}; call one otherwise: model={key}={folder},NAME=..."
            )
        found[key] = folder
    if not found:
        raise ModelFolderError("no model is given; serve run serve.app:app model=FOLDER.")
    return found


def _split(part: str) -> tuple[str, str]:
    """A name, empty if there is none, and what it names; folders may have `=` in their paths."""
    marks = [place for place, letter in enumerate(part) if letter == "="]
    for start in (0, *(place + 1 for place in marks)):
        if Path(part[start:]).is_dir():
            return part[: max(start - 1, 0)], part[start:]
    name, _, folder = part.rpartition("=")
    return name, folder


def _found(model: str) -> str:
    """A model folder's absolute path (replicas may run elsewhere), or a hub id as it is."""
    if Path(model).is_dir():
        return str(Path(model).resolve())
    if is_hub_id(model):
        return model
    raise ModelFolderError(
        f"model folder {model} does not exist; run `make demo`, which trains one, or give a folder "
        "or a hub id: serve run serve.app:app model=FOLDER."
    )


def is_hub_id(model: str) -> bool:
    """Whether this is `OWNER/NAME` and no path."""
    return model.count("/") == 1 and not model.startswith((".", "/", "~", "runs/"))


def _recorded_name(folder: str) -> str:
    return folder if is_hub_id(folder) else str(_config(folder)["name"])


def current_folder(folder: str) -> str:
    """The folder of a model's current version; a hub id as it is.

    Raises:
        ModelFolderError: the switch of a folder of versions is corrupt.
    """
    release = None if is_hub_id(folder) else read_release(folder)
    return folder if release is None else str(version_folder(folder, release.current))


def chosen_model(models: Mapping[str, str], asked: str | None) -> str:
    """The id of the model that a request names; the first where it names none.

    Raises:
        ProblemError: 422, there is no such model.
    """
    if asked is None:
        return next(iter(models))
    if asked not in models:
        raise ProblemError(
            422,
            f"model: no model is called {asked[:60]!r}; there are {', '.join(models)}.",
            "model",
        )
    return asked


def _config(folder: str) -> dict[str, Any]:
    if is_hub_id(folder):
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(folder, CONFIG))
    else:
        path = Path(current_folder(folder)) / CONFIG
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelFolderError(
            f"{path} cannot be read ({error}); give a folder that `save_pretrained` wrote."
        ) from error


def describe(model_id: str, folder: str, *, default: bool) -> ModelDescription:
    """What clients may know of a model; where it lies on this machine is nobody's business.

    Raises:
        ModelFolderError: its `config.json` cannot be read.
    """
    config = _config(folder)
    try:
        return ModelDescription(
            id=model_id,
            version=config["version"],
            backbone=config["backbone"]["name"],
            language_model=public_name(config["language_model"]["name"]),
            layers=[
                LayerDescription(name=name, channels=channels, grid=(rows, columns))
                for name, (channels, rows, columns) in config["layers"].items()
            ],
            scores=(config.get("training") or {}).get("scores") or {},
            default=default,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFolderError(
            f"{CONFIG} of model {model_id} is incomplete ({error!r}); train it again."
        ) from error


def public_name(language_model: str) -> str:
    """Hub id, or the last part of a path."""
    hub = is_hub_id(language_model) or "/" not in language_model
    return language_model if hub else Path(language_model).name
