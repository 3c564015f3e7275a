"""What ends a training: the batch that broke it, and errors that trying again would not mend."""

from pathlib import Path
from typing import Any

import ray.train
import torch

from devil.batches import TrainingBatches
from devil.errors import LossError, StorageError
from devil.files import write_json
from pipelines.cli import devil_error

BROKEN_BATCH = "broken_batch.json"


class EndAtOnce(ray.train.UserCallback):
    """Ends a training whose workers raise an error of the user's, which would only come again.

    A worker that dies is replaced as often as `max_failures` says; and storage may be out of reach
    for a moment, so that is tried again, too. A part that is broken stays so.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the error here, in the controller, which does not try again after its own."""
        for error in worker_exceptions.values():
            ours = devil_error(error)
            if ours is not None and not isinstance(ours, StorageError):
                raise ours


def save_broken_batch(
    folder: Path, step: int, rate: float, batches: TrainingBatches, error: LossError
) -> LossError:
    """Write down the batch whose loss is not finite.

    Args:
        folder: gets `broken_batch.json`: the step, the loss (this worker's share of it), the
            learning rate, keys of the whole batch in its order, and by slot the keys of rows whose
            features are not finite.
        step: of the batch.
        rate: learning rate of the step.
        batches: of this worker.
        error: what the step raised.

    Returns:
        The error with the file's name.
    """
    whole = batches.whole()
    keys = whole.keys(step)
    broken = {
        slot: [
            key for key, fine in zip(keys, torch.isfinite(rows).all(dim=1), strict=True) if not fine
        ]
        for slot, rows in next(whole(step, step + 1)).features.items()
    }
    path = write_json(
        folder / BROKEN_BATCH,
        {
            "step": step,
            "loss": str(error.loss),  # JSON has no NaN
            "learning_rate": rate,
            "keys": keys,
            "features_not_finite": broken,
        },
    )
    return LossError(f"{error} The batch's keys are in {path}.", error.loss)
