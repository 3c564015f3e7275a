"""How many rows fit: batches follow from a budget in bytes and from what a row takes.

A row takes its keys and values for all positions, and what passes through the model's widest layer.
The vocabulary's logits, which would be larger than either, are made a part at a time. Weights and
what the caller holds are not counted.
"""

import torch

from devil.errors import ConfigError
from devil.free_memory import free_bytes
from devil.language_model import LanguageModel

SHARE = 0.5
"""Share of the device's free memory that is taken when no budget is given."""
HEAD_BYTES = 32 * 2**20
"""Logits made at once on a CPU, at most: there, large blocks of memory are not used again."""
GPU_HEAD_BYTES = 2**30
"""The same on a GPU."""
CPU_TOKENS = 4096
"""On a CPU, tokens in one pass at most: more do not make it faster, and leave its caches."""


def budget_bytes(device: torch.device, memory_gb: float | None) -> int:
    """The budget given (10⁹ bytes), or a share of what the device has free."""
    return int(SHARE * free_bytes(device) if memory_gb is None else memory_gb * 1e9)


def rows_within(device: torch.device, memory_gb: float | None, each: int, tokens: int) -> int:
    """Rows of `each` bytes and so many tokens that go through a model at once, at least one."""
    rows = budget_bytes(device, memory_gb) // each
    if device.type == "cpu":
        rows = min(rows, CPU_TOKENS // tokens)
    return max(int(rows), 1)


def head_rows(language_model: LanguageModel) -> int:
    """Positions whose logits are made at once."""
    limit = HEAD_BYTES if language_model.device.type == "cpu" else GPU_HEAD_BYTES
    return max(1, limit // (4 * language_model.vocabulary))


def row_bytes(language_model: LanguageModel, before: int, room: int, step: int) -> int:
    """Bytes that one row takes, without logits.

    Args:
        language_model: the frozen LM.
        before: positions of the start, with BOS.
        room: positions behind it.
        step: most tokens that one row runs through the model behind the start.
    """
    config = language_model.model.config.get_text_config()
    tokens, positions = max(before, step), before + room
    attention = 8 * (getattr(config, "num_attention_heads", 1) + 1) * tokens * positions
    one_layer = 8 * config.hidden_size * positions
    cache = language_model.bytes_per_position * positions
    return cache + one_layer + attention + language_model.bytes_per_token * tokens


def batch_rows(
    language_model: LanguageModel,
    *,
    before: int,
    room: int,
    step: int,
    batch_size: int,
    memory_gb: float | None,
) -> int:
    """Rows of one batch; see `row_bytes`.

    Args:
        batch_size: upper limit.
        memory_gb: budget in 10⁹ bytes; None: half of what the device has free.

    Raises:
        ConfigError: the budget is too small for one row.
    """
    device = language_model.device
    budget = budget_bytes(device, memory_gb)
    each = row_bytes(language_model, before, room, step)
    position = 16 * language_model.vocabulary  # logits, and what the normaliser makes of them
    parted = (budget - position * head_rows(language_model)) // each
    whole = budget // (each + position * (step + 1))
    rows = max(parted, whole)
    if rows < 1 and memory_gb is not None:
        raise ConfigError(
            f"memory_gb is {memory_gb}; one row of {before + room} tokens needs up to "
            f"{(each + position * (step + 1)) / 1e9:.3g}; give more, or ask for shorter captions."
        )
    rows = max(rows, 1)
    if device.type == "cpu":
        rows = min(rows, max(CPU_TOKENS // max(before, step), 1))
    return int(min(rows, batch_size))
