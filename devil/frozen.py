"""Copies of a frozen language model that run a training step faster; weights are shared.

One has its matrices in the dtype of autocast already: autocast casts a frozen weight at every use,
for it keeps casts of trained ones only, and in bfloat16 that moves three quarters of a gigabyte in
each step with OPT-125M. Cast once, the numbers are the same to the last bit. In the other, what
stands between the products is compiled.
"""

import copy

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from devil.errors import LanguageModelError
from devil.language_model import LanguageModel
from devil.packed_weights import is_linear


def with_matrices_in(language_model: LanguageModel, dtype: torch.dtype) -> LanguageModel:
    """The model with weights and biases of its matrix products in `dtype`, for use under autocast.

    The model itself, if nothing would change.
    """
    if not any(_wider(module, dtype) for module in language_model.modules()):
        return language_model
    result = _copy(language_model)
    for module in result.modules():
        if _wider(module, dtype):
            for name, parameter in module.named_parameters(recurse=False):
                cast = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
                setattr(module, name, cast)
    return result


def compiled(language_model: LanguageModel) -> LanguageModel:
    """The model with each of its blocks compiled, at the block's first call for any lengths.

    Raises:
        LanguageModelError: it has no list of blocks.
    """
    result = _copy(language_model)
    # The outermost list: those inside of blocks are of experts, or the like.
    lists = (m for m in result.model.base_model.modules() if isinstance(m, nn.ModuleList))
    blocks = next(lists, None)
    if not blocks:
        raise LanguageModelError(
            f"{language_model.config.name}: {type(language_model.model).__name__} has no list of "
            "blocks to compile; train with compile=False."
        )
    for block in blocks:
        block.compile(dynamic=True)
    return result


def _copy(language_model: LanguageModel) -> LanguageModel:
    """Other modules with the same tensors and tokenizer."""
    _ = language_model.attends_by_caption  # found out once, as the model is, and copied
    shared = [*language_model.parameters(), *language_model.buffers()]
    memo: dict[int, object] = {id(tensor): tensor for tensor in shared}
    memo[id(language_model.tokenizer)] = language_model.tokenizer
    return copy.deepcopy(language_model, memo)


def _wider(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether autocast would narrow a module's weights."""
    if is_linear(module) or isinstance(module, Conv1D):
        weight = module.weight
        return isinstance(weight, torch.Tensor) and weight.itemsize > dtype.itemsize
    return False
