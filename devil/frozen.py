"""A frozen language model whose matrices are in the dtype of autocast already.

Autocast casts a frozen weight at every use, for it keeps casts of trained ones only: in bfloat16
that moves three quarters of a gigabyte in each step with OPT-125M. Cast once, the numbers are the
same to the last bit. Norms, embeddings and the tokenizer are shared with the model given.
"""

import copy

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from devil.language_model import LanguageModel
from devil.packed_weights import is_linear


def with_matrices_in(language_model: LanguageModel, dtype: torch.dtype) -> LanguageModel:
    """The model with weights and biases of its matrix products in `dtype`, for use under autocast.

    The model itself, if nothing would change.
    """
    if not any(_wider(module, dtype) for module in language_model.modules()):
        return language_model
    _ = language_model.attends_by_caption  # found out while all is in one precision, and copied
    shared = [*language_model.parameters(), *language_model.buffers()]
    memo: dict[int, object] = {id(tensor): tensor for tensor in shared}
    memo[id(language_model.tokenizer)] = language_model.tokenizer
    result = copy.deepcopy(language_model, memo)
    for module in result.modules():
        if _wider(module, dtype):
            for name, parameter in module.named_parameters(recurse=False):
                cast = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
                setattr(module, name, cast)
    return result


def _wider(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether autocast would narrow a module's weights."""
    if is_linear(module) or isinstance(module, Conv1D):
        weight = module.weight
        return isinstance(weight, torch.Tensor) and weight.itemsize > dtype.itemsize
    return False
