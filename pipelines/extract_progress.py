"""What extraction says while it runs, before it, and at its end."""

import logging
import time
from collections import Counter
from typing import Any

from tqdm import tqdm

from devil.extraction import ShardRecord
from devil.features import FeatureStore
from devil.shard_progress import Plan

logger = logging.getLogger("extract")


class Progress:
    """A bar over shards, with rows per second, failures by reason, and the time left."""

    def __init__(self, shards: int, done: int, workers: int) -> None:
        self.workers = workers
        self.rows = 0
        self.failed: Counter[str] = Counter()
        self.stages: Counter[str] = Counter()
        self.started = time.perf_counter()
        self.bar = tqdm(total=shards, initial=done, unit="shard", desc="extract", mininterval=1)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()
        if self.stages:
            spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.stages.items())
            logger.info("seconds by stage over all workers, side by side: %s", spent)

    def update(self, record: ShardRecord) -> None:
        """Count a finished shard."""
        if not record.skipped:  # its worker died between the part and the answer
            self.rows += record.rows + record.errors
        self.failed.update(record.failed)
        self.stages.update(record.stages)
        rate = self.rows / (time.perf_counter() - self.started)
        text = f"{self.rows:,} rows, {rate:.0f}/s, {rate / self.workers:.0f}/s a worker"
        reasons = ", ".join(f"{count} × {reason}" for reason, count in self.failed.most_common(3))
        self.bar.set_postfix_str(f"{text}; {reasons}" if reasons else text, refresh=False)
        self.bar.update()


def log_counts(store: FeatureStore, failed: Counter[str]) -> None:
    """Rows and errors of a store, the errors by stage and reason."""
    manifest = store.manifest
    logger.info("%s: %d rows, %d errors", store.root, manifest.rows, manifest.errors)
    for reason, count in failed.most_common():
        logger.info("  %d × %s; see %s/errors", count, reason, store.root)


def log_plan(plan: Plan, workers: int) -> None:
    """What a run would do."""
    logger.info("%d shards, %d of them finished", plan.shards, plan.finished)
    logger.info(
        "left: %s rows, %.1f GB to read, %.1f GB to write at most",
        f"{plan.rows:,}",
        plan.source_bytes / 1e9,
        plan.store_bytes / 1e9,
    )
    if plan.rate:
        logger.info(
            "%.0f rows/s of one worker, measured here: %.2f hours with %d",
            plan.rate,
            plan.hours(workers),
            workers,
        )
    elif plan.rows:
        logger.info("shards are too short to measure a rate")
