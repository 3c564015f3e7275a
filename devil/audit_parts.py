"""What the finished parts of an audit say of themselves: files, and how many pictures failed why.

A part (`devil.audit`) appears whole or not at all, and its footer holds these counts, so an audit
can be watched while it runs, and without torch.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from devil.errors import DataError
from devil.storage import guarded

METADATA = b"devil"
"""The footer's key."""
PREFIX, SUFFIX = "part-", ".parquet"


class Part(NamedTuple):
    """What a finished unit's part says of itself."""

    files: tuple[str, ...]
    """`files` of the unit."""
    explained: int
    """Pictures in the table."""
    errors: int
    """Pictures that could not be explained."""
    failures: Mapping[str, int]
    """Errors by stage and reason; they sum to `errors`."""
    sizes: tuple[int | None, ...] = ()
    """`sizes` of the unit; parts of earlier versions have none."""

    def holds(self, files: Sequence[str], sizes: Sequence[int | None]) -> bool:
        """Whether it was made from these files, as they are now; unknown sizes count as equal."""
        then = dict(zip(self.files, self.sizes or [None] * len(self.files), strict=True))
        now = dict(zip(files, sizes or [None] * len(files), strict=True))
        return now.keys() <= then.keys() and all(
            None in (size, then[file]) or size == then[file] for file, size in now.items()
        )

    def metadata(self) -> dict[bytes, bytes]:
        """The footer."""
        return {METADATA: json.dumps(self._asdict()).encode()}


class Counts(NamedTuple):
    """Pictures that are accounted for."""

    explained: int
    failed: int
    failures: dict[str, int]
    """By stage and reason, the most frequent first."""


def finished_parts(output: str) -> dict[str, Part]:
    """The parts in a folder, by the names of their units; none where there is no such folder.

    Raises:
        DataError: a file is corrupt, or no part of an audit.
    """
    fs, path = fsspec.core.url_to_fs(output.rstrip("/"))
    fs.invalidate_cache()
    names = fs.ls(path, detail=False) if fs.isdir(path) else []
    found = {name.rpartition("/")[2]: name for name in sorted(names)}
    return {
        name.removeprefix(PREFIX).removesuffix(SUFFIX): read_part(fs, address)
        for name, address in found.items()
        if is_part(name)
    }


def is_part(name: str) -> bool:
    """Whether a file has the name of a part."""
    return name.startswith(PREFIX) and name.endswith(SUFFIX)


def read_part(fs: fsspec.AbstractFileSystem, name: str) -> Part:
    """A part's footer.

    Raises:
        DataError: the file is corrupt, or no part of an audit.
        StorageError: it cannot be read.
    """
    try:
        with guarded(fs, name, name) as file:
            values = json.loads(pq.read_schema(file).metadata[METADATA])
        lists = {name: tuple(values.get(name, ())) for name in ("files", "sizes")}
        return Part(**{**values, **lists})
    except (pa.ArrowException, TypeError, KeyError, ValueError) as error:
        raise DataError(
            f"{name} is corrupt, or no part of an audit ({error!r}); remove it."
        ) from error


def count(parts: Iterable[Part]) -> Counts:
    """Sums over parts."""
    explained = failed = 0
    failures: Counter[str] = Counter()
    for part in parts:
        explained += part.explained
        failed += part.errors
        failures.update(part.failures)
    return Counts(explained, failed, dict(failures.most_common()))
