"""State dicts from local files into models, with errors that say what does not fit."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from devil.errors import BackboneError


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a safetensors file or a checkpoint that `weights_only` admits.

    Raises:
        BackboneError: the file is missing, corrupt, or holds something else than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise BackboneError(f"weights file {path} does not exist.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers and safetensors raise many kinds
        raise BackboneError(
            f"weights file {path} cannot be read ({type(error).__name__}: {error}); give a "
            "safetensors file or a state dict saved by torch.save."
        ) from error
    state = state.get("state_dict", state.get("model", state)) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BackboneError(f"weights file {path} holds no state dict (names → tensors).")
    return state


def classes_in(state: Mapping[str, Tensor], classifier: str, default: int) -> int:
    """Number of classes of the head called `classifier` in a state dict; `default` without one."""
    weight = state.get(f"{classifier}.weight")
    return default if weight is None else int(weight.shape[0])


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load a state dict strictly.

    Raises:
        BackboneError: names or shapes differ; says which, and what is expected.
    """
    expected = module.state_dict()
    missing = sorted(set(expected) - set(state))
    unexpected = sorted(set(state) - set(expected))
    shapes = [
        f"{name}: {tuple(state[name].shape)} in the file, {tuple(expected[name].shape)} expected"
        for name in sorted(set(expected) & set(state))
        if state[name].shape != expected[name].shape
    ]
    if missing or unexpected or shapes:
        raise BackboneError(
            f"weights {source} do not fit {type(module).__name__}: "
            f"{len(missing)} tensors missing {missing[:5]}, {len(unexpected)} unexpected "
            f"{unexpected[:5]}, {len(shapes)} of another shape {shapes[:5]}. Give the weights of "
            "this architecture, or the architecture of these weights."
        )
    module.load_state_dict(dict(state))
