"""Work that the method needs, in floating-point operations, and the rate at which a device works.

A token through a matrix of N weights costs 2N operations forward, 2N for the gradient of its input
and 2N for the weights' (Kaplan et al. 2020, arXiv 2001.08361, §2.1). Attention of q on k positions
costs 4·q·k·width in each layer forward and twice that backward (Chowdhery et al. 2022, arXiv
2204.02311, appendix B). Norms, activations and softmax are not counted, nor is padding.
"""

import resource
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from devil.language_model import LanguageModel
from devil.translator import Translator

MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices whose product gives a device's rate."""


class Attention(NamedTuple):
    """Size of a Transformer's attention."""

    layers: int
    width: int
    """Heads × width of each."""

    def flops(self, pairs: int) -> int:
        """Operations forward when so many pairs of positions (asking, answering) meet."""
        return 4 * pairs * self.width * self.layers


def matrix_weights(module: nn.Module) -> int:
    """Weights that multiply each token: those of matrices, without tables of embeddings."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    return sum(p.numel() for p in module.parameters() if p.ndim == 2 and id(p) not in tables)


def language_model_attention(language_model: LanguageModel) -> Attention:
    """Layers and width of a language model's attention, from its configuration."""
    config = language_model.model.config.get_text_config()
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return Attention(config.num_hidden_layers, width)


def head_weights(language_model: LanguageModel) -> int:
    """Weights of the head, vocabulary × width."""
    return language_model.model.get_output_embeddings().weight.numel()


def encoder_weights(translator: Translator) -> int:
    """Weights that multiply each of the translator's tokens."""
    return matrix_weights(translator.encoder)


def training_flops(
    translator: Translator,
    language_model: LanguageModel,
    visible: Bool[Tensor, "batch slot"],
    captions: Sequence[Sequence[int]],
) -> int:
    """Operations of one step, forward and backward; the language model's weights are frozen.

    Args:
        translator: trained.
        language_model: frozen.
        visible: slots that token dropout leaves.
        captions: token ids without BOS and EOS; the same number for each row, a row's together.
    """
    rows, prefix = len(visible), translator.config.prefix_length
    shown = [int(n) * translator.config.tokens_per_layer + prefix for n in visible.sum(dim=1)]
    projections = sum(
        layer.weight.numel() * int(n)
        for layer, n in zip(translator.project, visible.sum(dim=0), strict=True)
        if isinstance(layer, nn.Linear)
    )
    trained = encoder_weights(translator) * sum(shown) + projections
    trained += translator.output.weight.numel() * rows * prefix
    depth = Attention(translator.config.depth, translator.config.width)
    before = prefix + (language_model.bos is not None)
    inputs = rows * before + sum(map(len, captions))
    pairs = rows * before**2 + sum(len(ids) * (before + len(ids)) for ids in captions)
    labels = sum(len(ids) + 1 for ids in captions if ids)
    frozen = matrix_weights(language_model.model.base_model) * inputs
    frozen += head_weights(language_model) * labels
    attention = depth.flops(sum(n * n for n in shown))
    attention += language_model_attention(language_model).flops(pairs)
    return 6 * trained + 4 * frozen + 3 * attention


def matrix_rate(device: torch.device, dtype: torch.dtype, *, repeats: int = 3) -> float:
    """Operations per second of a product of two large square matrices, the best of a few."""
    side = MATRIX_SIDE[device.type]
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    result = left @ right
    best = float("inf")
    for _ in range(repeats):
        synchronise(device)
        started = time.perf_counter()
        torch.mm(left, right, out=result)
        synchronise(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Most memory held so far, in bytes: tensors on a GPU, or this process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
