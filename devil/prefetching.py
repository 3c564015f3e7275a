"""Batches made by a thread, a step or two ahead, in the order in which they would come anyway."""

import contextlib
import queue
import threading
from collections.abc import Iterator

from devil.batches import Batch


def prefetched(
    batches: Iterator[Batch], *, ahead: int = 2, pinned: bool = False
) -> Iterator[Batch]:
    """The same batches in the same order, made by a thread while a step runs.

    Args:
        batches: used by that thread alone until this ends.
        ahead: how many are kept ready.
        pinned: put features into page-locked memory, from which a GPU copies on its own.

    Raises:
        whatever making a batch raises, in its place.
    """
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(ahead)
    stopped = threading.Event()

    def offer(item: Batch | BaseException | None) -> bool:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not offer(_pinned(batch) if pinned else batch):
                    return
            offer(None)
        except BaseException as error:  # raised again where batches are taken
            offer(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


def _pinned(batch: Batch) -> Batch:
    return batch._replace(features={s: v.pin_memory() for s, v in batch.features.items()})
