"""Admission: how long a new picture would wait for others, and the refusal if that is too long.

What the shares of the turns promise (`serve.desk`) tells how much is read before its last row.
Work is counted in rows of the usual length: those with long queries or captions count as several.
"""

import time
from collections.abc import Hashable, Iterable
from typing import Protocol

MOST_WAITING = 100_000
"""Rows that wait at most, however fast they are read: their features take memory."""
MEMORY = 0.8
"""Weight of earlier turns in the measured rate."""


class BusyError(Exception):
    """Too much is waiting already."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds
        """Time after which the request would probably be taken."""


class Waiting(Protocol):
    """A picture that is waiting or being read."""

    @property
    def kind(self) -> Hashable:
        """Rows of equal kinds share turns."""
        ...

    @property
    def owner(self) -> str:
        """Pictures of equal owners share one share of the turns."""
        ...

    @property
    def load(self) -> int:
        """Work left."""
        ...


class Pace:
    """How fast work is done, lately; opening pictures counts in.

    Attributes:
        rate: usual rows per second; None before the first turn.
        started: when the step that is running began, in `time.monotonic`; None between steps.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.rate: float | None = None
        self.started: float | None = None
        self._reading = 0
        self._work, self._seconds = 0.0, 0.0

    def begin(self) -> None:
        """A step begins."""
        self.started = time.monotonic()

    def read(self, load: int) -> None:
        """The step goes on to do so much work."""
        self._reading = load

    def finish(self) -> None:
        """It is done."""
        assert self.started is not None
        seconds = max(time.monotonic() - self.started, 1e-6)
        self._work = MEMORY * self._work + self._reading
        self._seconds = MEMORY * self._seconds + seconds
        self.rate, self._reading = self._work / self._seconds, 0

    def rest(self) -> None:
        """Nothing is left to do."""
        self.started, self._reading = None, 0

    @property
    def left(self) -> float:
        """Work that the step that is running has yet to do, by the rate."""
        if self.started is None or self.rate is None:
            return self._reading
        return max(0.0, self._reading - self.rate * (time.monotonic() - self.started))

    def admit(self, ahead: int, waiting: int, limit: float) -> None:
        """Let a picture in, before whose last row so much of others' is read.

        Args:
            ahead: `load_ahead` of it.
            waiting: rows that would wait in all.
            limit: seconds that others may delay it.

        Raises:
            BusyError: they would delay it for longer, or too many rows wait.
        """
        seconds = (self.left + ahead) / self.rate if self.rate else 0.0
        if seconds > limit:
            raise BusyError(seconds - limit)
        if ahead and waiting > MOST_WAITING:
            raise BusyError(seconds)


def load_ahead(waiting: Iterable[Waiting], kind: Hashable, owner: str, load: int, turn: int) -> int:
    """Work of others that is done before the last of a new picture.

    With equal shares, others of its kind delay it by what they have waiting, but each by no more
    than what it brings itself; and other kinds have a turn of theirs between two of its own.

    Args:
        waiting: the others.
        kind: of the picture.
        owner: of the picture.
        load: of the picture.
        turn: work of one turn.
    """
    same: dict[str, int] = {}
    kinds: dict[Hashable, int] = {}
    for one in waiting:
        if one.kind == kind:
            same[one.owner] = same.get(one.owner, 0) + one.load
        else:
            kinds[one.kind] = kinds.get(one.kind, 0) + one.load
    own = same.pop(owner, 0)
    ahead = own + sum(min(left, own + load) for left in same.values())
    turns = -(-(ahead + load) // turn)
    return ahead + sum(min(left, turns * turn) for left in kinds.values())
