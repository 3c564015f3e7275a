"""The least time that a device needs: operations at its matrix rate, bytes at its copy rate.

Williams et al. 2009 ("Roofline"): a phase takes as long as the slower of the two. Work is what the
method needs (`devil.cost`), with every weight read once for each pass over the models, however a
program does it.
"""

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from devil.backbones import Backbone
from devil.cost import (
    Attention,
    encoder_weights,
    head_weights,
    language_model_attention,
    matrix_rate,
    matrix_weights,
    synchronise,
)
from devil.language_model import LanguageModel
from devil.translator import Translator

COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Size of the block whose copy gives a device's bandwidth."""


class Phase(NamedTuple):
    """Work that can overlap: all of one pass over a model."""

    flops: float
    weights: float
    """Weights read."""
    values: float = 0.0
    """Other numbers read or written: keys, values, states of an optimiser."""


class Rates(NamedTuple):
    """What a device does at most."""

    flops: float
    """Operations per second of a product of large matrices."""
    bytes: float
    """Bytes per second, read and written, of a copy."""


@functools.cache
def device_rates(kind: str, dtype: torch.dtype) -> Rates:
    """Measured once for each process."""
    device = torch.device(kind)
    return Rates(matrix_rate(device, dtype, repeats=5), _copy_rate(device))


def _copy_rate(device: torch.device) -> float:
    size = COPY_BYTES[device.type]
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(6):  # the first one also fetches the memory
        synchronise(device)
        started = time.perf_counter()
        target.copy_(source)
        synchronise(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size / best


def roofline(
    phases: Sequence[Phase], seconds: float, rates: Rates, itemsize: int
) -> dict[str, Any]:
    """Work, rates, and the share of the least possible time in the time taken."""
    least, limited = 0.0, 0.0
    for phase in phases:
        compute = phase.flops / rates.flops
        memory = (phase.weights + phase.values) * itemsize / rates.bytes
        least += max(compute, memory)
        limited += memory if memory > compute else 0.0
    return {
        "flops": sum(phase.flops for phase in phases),
        "bytes": sum((p.weights + p.values) * itemsize for p in phases),
        "matrix_flops_per_s": rates.flops,
        "copy_bytes_per_s": rates.bytes,
        "least_s": least,
        "share": least / seconds,
        "share_limited_by_memory": limited / least if least else 0.0,
    }


def vision(backbone: Backbone, images: Tensor) -> Phase:
    """A pass over images, counted by PyTorch."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        backbone(images)
    return Phase(counter.get_total_flops(), sum(p.numel() for p in backbone.parameters()))


def translation(translator: Translator, channels: int, rows: int) -> Phase:
    """Prefixes of single vectors: 1 + n tokens for each."""
    config = translator.config
    tokens = config.tokens_per_layer + config.prefix_length
    weights = encoder_weights(translator)
    ends = channels * config.tokens_per_layer * config.width
    out = translator.output.weight.numel()
    flops = 2 * rows * (tokens * weights + ends + config.prefix_length * out)
    flops += Attention(config.depth, config.width).flops(rows * tokens**2)
    return Phase(flops, weights + ends + out)


def tokens_behind(
    language_model: LanguageModel, rows: int, before: int, tokens: int, predicting: int
) -> Phase:
    """A pass over `tokens` positions of each row behind `before` others.

    Args:
        language_model: the frozen LM.
        rows: number of sequences.
        before: positions whose keys and values are there already.
        tokens: positions of this pass.
        predicting: how many of them, at each row, need the head.
    """
    body = matrix_weights(language_model.model.base_model)
    head = head_weights(language_model)
    attention = language_model_attention(language_model)
    flops = 2 * rows * (tokens * body + predicting * head)
    flops += attention.flops(rows * tokens * (before + tokens))
    cached = 2 * attention.layers * attention.width * rows * before
    return Phase(flops, body + (head if predicting else 0), cached)


def decoding(language_model: LanguageModel, start: int, going: Sequence[int]) -> list[Phase]:
    """A prefill of `start` positions, then a pass for each further token.

    Args:
        language_model: the frozen LM.
        start: positions of BOS and prefix.
        going: rows that still take part at each token, from the first one on.
    """
    phases = [tokens_behind(language_model, going[0], 0, start, 1)]
    for step, rows in enumerate(going[1:]):
        phases.append(tokens_behind(language_model, rows, start + step, 1, 1))
    return phases
