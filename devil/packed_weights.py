"""Weights of a frozen model, laid out once as the processor's matrix kernels want them.

On a CPU, each product of few rows with a large matrix spends as long on bringing the matrix into
the kernel's blocked layout as on multiplying; decoding does that for each token anew. oneDNN, which
torch brings along, can keep the blocked copy: in bfloat16 products of 8 to 200 rows take 0.4 to 0.8
of the time, in float32 0.4 to 1.0, for the same numbers up to rounding. The copies take the memory
of the weights a second time, so models too large for that go without.

A weight that moves, changes its type or is written to in the usual ways gets a new copy. What is
written behind torch's back (through `.data` in place, or numpy) is not seen: call `forget_packed`.
"""

import contextlib
import contextvars
import functools
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers.pytorch_utils import Conv1D

LEAST = 2**19
"""Values of a matrix from which on a copy pays in float32; in bfloat16 it always does."""

_active = contextvars.ContextVar("active", default=False)
_copies = weakref.WeakKeyDictionary[nn.Module, "_Blocked"]()


def is_linear(module: object) -> bool:
    """Whether a module is `nn.Linear`, packable or not, and nothing that was derived from it."""
    return type(module) in (nn.Linear, PackableLinear)


def make_packable(model: nn.Module) -> None:
    """Let matrix products of a model use blocked copies inside of `packed_weights`."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = PackableLinear
        elif type(module) is Conv1D:
            module.__class__ = PackableConv1D


def forget_packed(model: nn.Module) -> None:
    """Give back the memory of a model's blocked copies; they are made again when needed."""
    for module in model.modules():
        _copies.pop(module, None)


@contextlib.contextmanager
def packed_weights(active: bool = True) -> Iterator[None]:
    """Inside, packable modules multiply by blocked copies.

    Not where gradients or autocast are on as it begins; they must not be turned on inside.
    """
    usual = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    token = _active.set(active and not usual)
    try:
        yield
    finally:
        _active.reset(token)


class _Packable(nn.Module):
    """A module that forgets its copy when it moves or changes its type."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        _copies.pop(self, None)
        return super()._apply(fn, recurse)


class PackableLinear(_Packable, nn.Linear):
    """`nn.Linear`, by a blocked copy where that is on and possible."""

    def forward(self, input: Tensor) -> Tensor:
        """The product, in the usual way or in the fast one."""
        found = _product(self, input)
        return super().forward(input) if found is None else found


class PackableConv1D(_Packable, Conv1D):
    """`Conv1D` of transformers, a linear map with its weight the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        """The product, in the usual way or in the fast one."""
        found = _product(self, x)
        return super().forward(x) if found is None else found


class _Blocked(NamedTuple):
    storage: StorageWeakRef
    """Of the weight: memory that is free again may be given to another at the same address."""
    state: tuple[Any, ...]
    copy: Tensor


def _product(module: PackableLinear | PackableConv1D, given: Tensor) -> Tensor | None:
    """The fast product; None where the usual way must be taken."""
    copy = _copy(module, given) if _active.get() else None
    if copy is None:
        return None
    return _multiplied(given, copy, module.bias)


def _multiplied(given: Tensor, blocked: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(given, blocked, bias, "none", [], "")


def _copy(module: PackableLinear | PackableConv1D, given: Tensor) -> Tensor | None:
    """The blocked copy of a module's weight; None where the usual way must be taken."""
    weight = module._parameters.get("weight")  # not there where it is computed from others
    if type(weight) is not nn.Parameter or weight.is_inference():
        return None
    if given.device.type != "cpu" or given.dtype != weight.dtype or not given.numel():
        return None
    if weight.dtype == torch.float32 and weight.numel() < LEAST:
        return None
    state = (weight.data_ptr(), weight.dtype, weight._version)
    found = _copies.get(module)
    if found is None or found.state != state or found.storage.expired():
        if not _possible(weight.dtype):
            return None
        blocked = _blocked(weight.t() if isinstance(module, Conv1D) else weight)
        storage = StorageWeakRef(weight.untyped_storage())
        _copies[module] = found = _Blocked(storage, state, blocked)
    return found.copy


def _blocked(weight: Float[Tensor, "out in"]) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), 64)


@functools.cache
def _possible(dtype: torch.dtype) -> bool:
    """Whether this processor and this torch multiply so, tried out once."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    values = torch.linspace(-1, 1, 48 * 32).view(48, 32).to(dtype)
    rows, bias = values[:5] * 2, values[:, 0].contiguous()
    try:
        with torch.inference_mode(False), torch.no_grad():
            found = _multiplied(rows, _blocked(values), bias)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return torch.allclose(found, F.linear(rows, values, bias), rtol=1e-2, atol=1e-2)
