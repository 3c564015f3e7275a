"""Batches made by a thread, one or two ahead, in the order in which they would come anyway."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def prefetched(batches: Iterator[Item], *, ahead: int = 2) -> Generator[Item]:
    """The same batches in the same order, made by a thread while the one before is worked on.

    Args:
        batches: used by that thread alone until this ends.
        ahead: how many are kept ready.

    Raises:
        whatever making a batch raises, in its place.
    """
    ready: queue.Queue[Item | BaseException | None] = queue.Queue(ahead)
    stopped = threading.Event()

    def offer(item: Item | BaseException | None) -> bool:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not offer(batch):
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
