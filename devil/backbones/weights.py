"""State dicts from local files into models, with errors that say what does not fit."""

from collections.abc import Iterable, Mapping
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
    shapes = {
        name: (tuple(state[name].shape), tuple(expected[name].shape))
        for name in set(expected) & set(state)
        if state[name].shape != expected[name].shape
    }
    check_fit(
        f"weights {source} do not fit {type(module).__name__}",
        missing=set(expected) - set(state),
        unexpected=set(state) - set(expected),
        shapes=shapes,
    )
    module.load_state_dict(dict(state))


def check_fit(
    problem: str,
    *,
    missing: Iterable[str],
    unexpected: Iterable[str],
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    """Raise a `BackboneError` that names the tensors, if there are any.

    Args:
        problem: how the message begins.
        missing: names that the model has and the file lacks.
        unexpected: names that the file has and the model lacks.
        shapes: name → shape in the file, shape in the model.
    """
    differences = [f"{n} {ours} instead of {theirs}" for n, (ours, theirs) in shapes.items()]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": differences}
    found = [
        f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for kind, names in ((kind, sorted(names)) for kind, names in kinds.items())
        if names
    ]
    if found:
        raise BackboneError(
            f"{problem} (tensors {'; '.join(found)}). Give the weights of this architecture, or "
            "the architecture of these weights."
        )


def _short(error: Exception) -> str:
    """The first line of an error, which may go on for pages."""
    return (str(error).splitlines() or [""])[0][:200]
