"""What training the backbone and the language model share: threads, the optimiser, row batches."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Many small operations wait longer for a second thread on a busy machine than it saves.

    And with one, a result does not depend on how many there are.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make_optimizer(modules: Sequence[nn.Module], learning_rate: float, steps: int):
    """AdamW without decay on norms and biases, one cycle of the learning rate."""
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=learning_rate,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=max(steps, 2), pct_start=0.15
    )
    return optimizer, schedule


def batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields `steps` batches of row numbers, a new order for each pass over the data."""
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < size:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[:size]
        order = order[size:]
