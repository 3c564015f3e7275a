"""Training that begins with the translator of an older model instead of random weights.

The older model's means and deviations of the features come along, for its weights were learned
behind them; the optimiser and the schedule begin anew.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from devil.config import TranslatorConfig, to_dict
from devil.errors import ModelFolderError
from devil.folder import WEIGHTS, find_folder, load_translator, read_config
from devil.translator import Translator
from devil.types import LayerShape


def check_start(
    name: str | PathLike[str],
    *,
    translator: TranslatorConfig,
    layers: Mapping[str, LayerShape],
    backbone_digest: str,
    language_model_digest: str,
) -> str:
    """Find out whether training may begin with a model.

    Args:
        name: model folder, or hub id.
        translator, layers, backbone_digest, language_model_digest: of the model that is trained.

    Returns:
        The version of the older model.

    Raises:
        ModelFolderError: it has another translator, other layers or other frozen models.
    """
    config = read_config(find_folder(name))
    # Layers in their order, which is the order of the translator's slots.
    wanted: dict[str, Any] = {
        "translator": to_dict(translator),
        "layers": [[layer, list(shape)] for layer, shape in layers.items()],
        "backbone_digest": backbone_digest,
        "language_model_digest": language_model_digest,
    }
    found = config | {"layers": [list(item) for item in config["layers"].items()]}
    for key, value in wanted.items():
        if found[key] != value:
            raise ModelFolderError(
                f"training cannot start from {name}: its {key} is {found[key]}, and that of this "
                f"training {value}; make them equal, or start from random weights."
            )
    return config["version"]


def start_from(translator: Translator, name: str | PathLike[str], version: str) -> None:
    """Give a translator the weights of a model that `check_start` has accepted.

    Raises:
        ModelFolderError: the model is another one by now, or its files are corrupt.
    """
    folder = find_folder(name)
    found = read_config(folder)["version"]
    if found != version:
        raise ModelFolderError(
            f"training was to start from version {version}, but {name} holds version {found} by "
            "now; start it again."
        )
    load_translator(translator, folder / WEIGHTS, version)
