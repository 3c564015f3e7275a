"""Which shards of a source are in a feature store, and what the others will take.

A part counts as finished if it was made from a shard of the same name, size and beginning.
"""

from collections.abc import Sequence
from typing import NamedTuple

from devil.data.shard import Shard
from devil.data.source import Source
from devil.errors import DataError, FeatureStoreError
from devil.features import FeatureStore, PartMetadata
from devil.storage import in_threads


def finished(store: FeatureStore, source: Source, shard: Shard) -> PartMetadata | None:
    """The part already made from this shard, if there is one.

    Raises:
        FeatureStoreError: a part of this name was made from another shard.
    """
    if not store.has(store.part_path(shard.name)):
        return None
    return _unchanged(store, source, shard)


def _unchanged(store: FeatureStore, source: Source, shard: Shard) -> PartMetadata | None:
    """What the shard's part says, if the shard is still the same."""
    part = store.part_path(shard.name)
    metadata = store.metadata(part)
    size, head = source.identity(shard)
    if metadata.source_bytes == size and metadata.source_head in ("", head):
        return metadata
    if metadata.damaged:  # it has been fetched again since
        return None
    raise FeatureStoreError(
        f"{part} was made from {metadata.source} ({metadata.source_bytes:,} bytes), and "
        f"{shard.address} ({size:,} bytes) has the same name but other content, or is cut or read "
        "otherwise (--source). Rename the shard, or use another store."
    )


def finished_parts(
    store: FeatureStore, source: Source, shards: Sequence[Shard]
) -> dict[str, PartMetadata]:
    """The parts already made, by the shards' names; errors as `finished`."""
    there = store.part_names()
    candidates = [shard for shard in shards if shard.name in there]
    found = in_threads(lambda shard: _unchanged(store, source, shard), candidates)
    return {
        shard.name: part for shard, part in zip(candidates, found, strict=True) if part is not None
    }


def check_names(shards: Sequence[Shard]) -> None:
    """Refuse two shards of one name, whose parts would be one.

    Raises:
        DataError: there are such; names them.
    """
    seen: dict[str, str] = {}
    for shard in shards:
        if seen.setdefault(shard.name, shard.address) != shard.address:
            raise DataError(
                f"{seen[shard.name]} and {shard.address} would both become part "
                f"{shard.name!r}; give each a name of its own."
            )


class Plan(NamedTuple):
    """What is left to do, and an estimate of what it takes."""

    shards: int
    finished: int
    rows: int
    """Rows left."""
    source_bytes: int
    """Bytes of the shards left."""
    store_bytes: int
    """Bytes that their parts will take before compression."""
    rate: float
    """Rows per second of one worker, as measured; 0: not measured."""

    def hours(self, workers: int) -> float:
        """Time for some workers; infinite without a rate."""
        return self.rows / (self.rate * workers) / 3600 if self.rate else float("inf")


def with_sizes(source: Source, shards: Sequence[Shard]) -> list[tuple[Shard, int]]:
    """Shards and their bytes."""
    sizes = [identity.size for identity in in_threads(source.identity, shards)]
    return list(zip(shards, sizes, strict=True))


def typical(shards: Sequence[tuple[Shard, int]]) -> tuple[Shard, int]:
    """One of middle size, by which others are judged: the smallest may be empty or cut off."""
    return sorted(shards, key=lambda entry: entry[1])[len(shards) // 2]


def plan(
    store: FeatureStore,
    source: Source,
    shards: Sequence[tuple[Shard, int]],
    done: int,
    *,
    rate: float,
) -> Plan:
    """Add up what is left.

    Args:
        store: says how large a row is.
        source: reads a shard.
        shards: those left, and their bytes. Where they do not say how many rows they hold, the
            `typical` one is read through, and the others are taken to hold as many for each byte.
        done: how many are finished.
        rate: rows per second of one worker.
    """
    rows = sum(shard.rows or 0 for shard, _ in shards)
    unknown = [(shard, size) for shard, size in shards if shard.rows is None]
    if unknown:
        judged, size = typical(unknown)
        rows += round(_count(source, judged) * sum(size for _, size in unknown) / max(1, size))
    read = sum(size for _, size in shards)
    return Plan(len(shards) + done, done, rows, read, rows * store.row_bytes(), rate)


def _count(source: Source, shard: Shard) -> int:
    rows = 0
    try:
        for _ in source.read(shard):
            rows += 1
    except DataError:  # what can be read of a damaged shard
        pass
    return rows
