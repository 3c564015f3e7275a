"""Model folders in hub layout: `save_model`, `load_model`, `push_model`.

``config.json`` (translator, backbone and LM by name, training summary), ``model.safetensors`` (the
translator alone), ``statistics.safetensors`` (mean and deviation of each slot's features) and
``README.md`` (model card). The frozen models are named, not copied; digests prove that what is
loaded is what the translator was trained for. Local paths are kept relative to the folder.
"""

import contextlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import HfApi, snapshot_download
from torch import Tensor

from devil.backbones import load_backbone
from devil.backbones.base import Backbone, weights_digest
from devil.card import model_card
from devil.config import BackboneConfig, LanguageModelConfig, TranslatorConfig, from_dict, to_dict
from devil.errors import BackboneError, ConfigError, LanguageModelError, ModelFolderError
from devil.language_model import LanguageModel, load_language_model
from devil.model import DeViL, SlotStatistics
from devil.release import read_release, version_folder
from devil.translator import Translator
from devil.types import LayerShape

FORMAT_VERSION = 1
CONFIG, WEIGHTS, STATISTICS, CARD = (
    "config.json",
    "model.safetensors",
    "statistics.safetensors",
    "README.md",
)
FILES = {CONFIG, WEIGHTS, STATISTICS, CARD}
"""All that a model folder holds."""
KEYS = set(
    "format_version name version backbone backbone_digest layers language_model "
    "language_model_digest embedding_width translator training".split()
)
"""Keys of `config.json`."""

_loading = threading.Lock()
"""While transformers loads, all threads of the process see the number format and the beginnings of
weights that it has set: two models at once would spoil each other."""


def save_model(model: DeViL, folder: str | PathLike[str]) -> None:
    """Write a model folder beside its place and rename it there; an older one is replaced.

    Gives the model the version that the folder has.

    Raises:
        ModelFolderError: in its place is something else than a model folder.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not (folder.is_dir() and _replaceable(folder)):
        raise ModelFolderError(
            f"{folder} exists and is no model folder, or holds other files than a model's, so it "
            "is not replaced; choose another name."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        config = _write_files(model, temporary, folder)
        os.chmod(temporary, 0o755)
        _put_in_place(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    model.version = config["version"]


def _replaceable(folder: Path) -> bool:
    """Whether a folder is empty, or holds an older model and nothing of anybody else's."""
    names = {path.name for path in folder.iterdir()}
    if names and not ({CONFIG, WEIGHTS, STATISTICS} <= names <= FILES):
        return False
    return not names or set(_json_object(folder / CONFIG)) == KEYS


def _json_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty if it holds no such thing."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename; an older folder goes when the new one stands, and comes back if it does not."""
    if not folder.exists():
        os.rename(temporary, folder)
        return
    retired = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    os.rename(folder, retired / folder.name)
    try:
        os.rename(temporary, folder)
    except BaseException:
        os.rename(retired / folder.name, folder)
        raise
    finally:
        shutil.rmtree(retired)


def _write_files(model: DeViL, folder: Path, final: Path) -> dict[str, Any]:
    state = {k: v.detach().cpu().contiguous() for k, v in model.translator.state_dict().items()}
    safetensors.torch.save_file(state, folder / WEIGHTS)
    statistics: dict[str, Tensor] = {}
    for slot, (mean, std) in model.statistics.items():
        statistics[f"mean.{slot}"] = mean.detach().cpu().contiguous()
        statistics[f"std.{slot}"] = std.detach().cpu().contiguous()
    safetensors.torch.save_file(statistics, folder / STATISTICS)
    config = model_config(model, final)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (folder / CARD).write_text(model_card(model, config))
    for file in folder.iterdir():
        os.chmod(file, 0o644)  # safetensors writes for the owner alone
    return config


def model_config(model: DeViL, folder: Path) -> dict[str, Any]:
    """What `config.json` holds."""
    backbone = model.backbone_config
    if backbone.weights not in ("pretrained", "random"):
        backbone = replace(backbone, weights=_relative(backbone.weights, folder))
    language_model = model.language_model.config
    if Path(language_model.name).is_dir():
        language_model = replace(language_model, name=_relative(language_model.name, folder))
    return {
        "format_version": FORMAT_VERSION,
        "name": model.name,
        "version": weights_digest(model.translator),
        "backbone": to_dict(replace(backbone, layers=model.layers)),
        "backbone_digest": model.backbone_digest,
        "layers": {name: list(shape) for name, shape in model.shapes.items()},
        "language_model": to_dict(language_model),
        "language_model_digest": model.language_model.digest(),
        "embedding_width": model.language_model.embedding_width,
        "translator": to_dict(model.translator.config),
        "training": model.summary,
    }


def _relative(path: str, folder: Path) -> str:
    return os.path.relpath(os.path.abspath(path), os.path.abspath(folder))


def load_model(
    name: str | PathLike[str],
    *,
    device: torch.device | str = "cpu",
    backbone_weights: str | None = None,
    language_model: str | None = None,
    with_backbone: bool = True,
    revision: str | None = None,
) -> DeViL:
    """Load a model folder; arguments and errors as `DeViL.from_pretrained`.

    Threads that load at the same time wait for each other.
    """
    folder = find_folder(name, revision)
    config = read_config(folder)
    with _understood(folder), _loading:
        return _assemble(folder, config, device, backbone_weights, language_model, with_backbone)


def check_folder(folder: Path) -> None:
    """Make sure that a model folder is whole, without loading its frozen models.

    Raises:
        ModelFolderError: a file is missing, corrupt, or of another format.
    """
    config = read_config(folder)
    with _understood(folder):
        _read_statistics(folder / STATISTICS, _read_translator(folder, config))


@contextlib.contextmanager
def _understood(folder: Path) -> Iterator[None]:
    """What goes wrong with a configuration's values is the folder's fault."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ModelFolderError(
            f"{folder / CONFIG} is no model configuration of format {FORMAT_VERSION} "
            f"({type(error).__name__}: {error})."
        ) from error


def find_folder(name: str | PathLike[str], revision: str | None = None) -> Path:
    """A model folder here, or fetched from the hub.

    Raises:
        ModelFolderError: neither has it.
    """
    text = os.fspath(name)
    if text and Path(text).is_dir():
        release = read_release(text)
        return version_folder(text, release.current) if release else Path(text)
    if text.count("/") != 1 or text.startswith((".", "/", "~", "runs/")):
        raise ModelFolderError(f"model folder {text} does not exist; give a folder or a hub id.")
    try:
        files = [CONFIG, WEIGHTS, STATISTICS, CARD]
        return Path(snapshot_download(text, revision=revision, allow_patterns=files))
    except Exception as error:  # the hub client raises many kinds
        raise ModelFolderError(
            f"{text} is no folder here, and cannot be had from the hub "
            f"({type(error).__name__}: {error})."
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's `config.json`.

    Raises:
        ModelFolderError: a file is missing, corrupt, or of another format.
    """
    missing = [f for f in (CONFIG, WEIGHTS, STATISTICS) if not (folder / f).is_file()]
    if missing:
        raise ModelFolderError(f"model folder {folder} lacks {missing}; copy the whole folder.")
    try:
        config = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise ModelFolderError(f"{folder / CONFIG} is corrupt: {error}") from error
    if not isinstance(config, dict) or config.get("format_version") != FORMAT_VERSION:
        found = config.get("format_version") if isinstance(config, dict) else None
        raise ModelFolderError(
            f"model folder {folder} has format version {found!r}; this version of devil reads "
            f"{FORMAT_VERSION}."
        )
    if set(config) != KEYS:
        raise ModelFolderError(
            f"{folder / CONFIG} has unknown keys {sorted(set(config) - KEYS)} and lacks "
            f"{sorted(KEYS - set(config))}."
        )
    return config


def _assemble(
    folder: Path,
    config: Mapping[str, Any],
    device: torch.device | str,
    backbone_weights: str | None,
    language_model: str | None,
    with_backbone: bool,
) -> DeViL:
    shapes = _layer_shapes(config)
    translator = _read_translator(folder, config)
    statistics = _read_statistics(folder / STATISTICS, translator)
    lm = _language_model(folder, config, language_model, device)
    backbone_config = from_dict(BackboneConfig, config["backbone"])
    weights = backbone_weights
    if weights is None and backbone_config.weights not in ("pretrained", "random"):
        weights = os.path.normpath(folder / backbone_config.weights)
    if weights is not None:
        backbone_config = replace(backbone_config, weights=weights)
    backbone = None
    if with_backbone:
        backbone = load_backbone(backbone_config, device=device)
        _check_digest(backbone, config)
    model = DeViL(
        translator=translator,
        language_model=lm,
        backbone_config=backbone_config,
        backbone_digest=config["backbone_digest"],
        shapes=shapes,
        statistics=statistics,
        backbone=backbone,
        summary=config["training"],
        name=config["name"],
    )
    model.version = config["version"]
    return model.to(device).eval()


def _layer_shapes(config: Mapping[str, Any]) -> dict[str, LayerShape]:
    return {layer: LayerShape(*shape) for layer, shape in config["layers"].items()}


def _read_translator(folder: Path, config: Mapping[str, Any]) -> Translator:
    """The translator with the weights whose digest is the configuration's version."""
    translator = Translator(
        from_dict(TranslatorConfig, config["translator"]),
        {layer: shape.channels for layer, shape in _layer_shapes(config).items()},
        config["embedding_width"],
    )
    load_translator(translator, folder / WEIGHTS, config["version"])
    return translator


def load_translator(translator: Translator, path: Path, version: str) -> None:
    """Load weights from a file.

    Raises:
        ModelFolderError: they do not fit, or are not those of `version`.
    """
    state = _read_tensors(path)
    expected = translator.state_dict()
    wrong = sorted(set(expected) ^ set(state)) or [
        name for name, tensor in state.items() if tensor.shape != expected[name].shape
    ]
    if wrong:
        raise ModelFolderError(f"{path} does not fit its {CONFIG}: tensors {wrong[:5]}.")
    translator.load_state_dict(state)
    if weights_digest(translator) != version:
        raise ModelFolderError(
            f"{path} has other weights than those of version {version} that its {CONFIG} names; "
            "copy the whole folder again."
        )


def _read_statistics(path: Path, translator: Translator) -> dict[str, SlotStatistics]:
    tensors = _read_tensors(path)
    wrong = [
        f"{kind}.{slot}"
        for index, slot in enumerate(translator.slots)
        for kind in ("mean", "std")
        if f"{kind}.{slot}" not in tensors
        or tensors[f"{kind}.{slot}"].shape != translator.get_buffer(f"feature_mean_{index}").shape
    ]
    if wrong:
        raise ModelFolderError(f"{path} lacks statistics of the right shape: {wrong}.")
    # Copies, for the file is mapped, and the model's folder may be removed while it is in use.
    return {
        slot: SlotStatistics(tensors[f"mean.{slot}"].clone(), tensors[f"std.{slot}"].clone())
        for slot in translator.slots
    }


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # safetensors raises its own kind, the system others
        raise ModelFolderError(
            f"{path} is corrupt ({error}); copy it again from where it was made."
        ) from error


def _language_model(
    folder: Path, config: Mapping[str, Any], override: str | None, device: torch.device | str
) -> LanguageModel:
    lm_config = from_dict(LanguageModelConfig, config["language_model"])
    inside = os.path.normpath(folder / lm_config.name)
    if override or Path(inside).is_dir() or lm_config.name.startswith("."):
        lm_config = replace(lm_config, name=override or inside)
    lm = load_language_model(lm_config, device=device)
    digest = lm.digest()
    if digest != config["language_model_digest"]:
        raise LanguageModelError(
            f"language model {lm_config.name} has digest {digest}; the translator was trained "
            f"for {config['language_model_digest']}. Give that model by language_model=FOLDER."
        )
    return lm


def _check_digest(backbone: Backbone, config: Mapping[str, Any]) -> None:
    digest = backbone.digest()
    if digest != config["backbone_digest"]:
        raise BackboneError(
            f"backbone {backbone.name} has weights of digest {digest}; the translator was trained "
            f"for {config['backbone_digest']}. Give those weights by backbone=PATH."
        )


def push_model(
    model: DeViL,
    repository: str,
    *,
    private: bool = True,
    message: str = "",
    api: HfApi | None = None,
) -> str:
    """Upload a model folder to the hub, making the repository if it does not exist.

    Backbone and LM must be named by hub ids: paths of this machine mean nothing elsewhere.

    Raises:
        ModelFolderError: a frozen model is a local file, which the upload would not contain.
    """
    local = [
        path
        for path in (model.backbone_config.weights, model.language_model.config.name)
        if Path(path).exists()
    ]
    if local:
        raise ModelFolderError(
            f"{local} are local files, which a hub model could not name; upload them first and "
            "load the model by their hub ids."
        )
    api = api or HfApi()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save_model(model, folder)
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message or "Upload DeViL model"
        )
    return str(commit)
