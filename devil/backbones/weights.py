"""State dicts from local files into models, with errors that say what does not fit."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from devil.errors import BackboneError

_NESTED = ("state_dict", "model")
"""Keys under which training scripts put the state dict in a checkpoint."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a safetensors file or a checkpoint that `weights_only` admits.

    Raises:
        BackboneError: the file is missing, corrupt, or holds something else than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise BackboneError(
            f"weights file {path} does not exist; give the path of a safetensors file or a state "
            "dict, or 'pretrained' or 'random'."
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers and safetensors raise many kinds
        raise BackboneError(
            f"weights file {path} cannot be read ({type(error).__name__}: {_short(error)}); give "
            "a safetensors file or a state dict saved by torch.save."
        ) from error
    for key in _NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BackboneError(f"weights file {path} holds no state dict (names → tensors).")
    return without_prefix(state, "module.")  # DistributedDataParallel adds it


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state dict under `prefix`, or all of it where nothing has that prefix."""
    part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return part or dict(state)


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load a state dict strictly.

    Raises:
        BackboneError: names or shapes differ; says which, and what is expected.
    """
    expected = module.state_dict()
    problems = {
        "missing": sorted(set(expected) - set(state)),
        "unexpected": sorted(set(state) - set(expected)),
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in sorted(set(expected) & set(state))
            if state[name].shape != expected[name].shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(
            f"{len(names)} {problem}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for problem, names in problems.items()
            if names
        )
        raise BackboneError(
            f"weights {source} do not fit {type(module).__name__} (tensors {found}). Give the "
            "weights of this architecture, or the architecture of these weights."
        )
    module.load_state_dict(dict(state))


def _short(error: Exception) -> str:
    """The first line of an error, which may go on for pages."""
    return (str(error).splitlines() or [""])[0][:200]
