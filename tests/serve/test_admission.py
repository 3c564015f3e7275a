"""Who is let in: rows counted by hand, and a clock that is set by hand."""

from typing import NamedTuple

import pytest

from serve import admission
from serve.admission import MOST_WAITING, BusyError, Pace, load_ahead


class Picture(NamedTuple):
    """A picture that waits."""

    kind: str
    owner: str
    load: int


class Clock:
    """Stands where it was set."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(admission, "time", made)
    return made


@pytest.mark.parametrize(
    ("waiting", "ahead"),
    [
        ([], 0),
        ([Picture("k", "other", 3)], 3),  # all of it
        ([Picture("k", "other", 500)], 10),  # its share, while ours are read
        ([Picture("k", "other", 6), Picture("k", "other", 6)], 10),  # one owner, one share
        ([Picture("k", "us", 7)], 7),  # our own come first
        ([Picture("k", "us", 7), Picture("k", "other", 500)], 7 + 17),
        ([Picture("else", "other", 3)], 3),
        ([Picture("else", "other", 500)], 3 * 4),  # a turn of theirs for each of our three
        ([Picture("else", "us", 500)], 3 * 4),
        ([Picture("k", "other", 500), Picture("else", "other", 500)], 10 + 5 * 4),
    ],
)
def test_rows_that_are_read_before_ten_of_ours(waiting: list[Picture], ahead: int) -> None:
    assert load_ahead(waiting, "k", "us", 10, turn=4) == ahead


def test_the_rate_follows_the_last_turns(clock: Clock) -> None:
    pace = Pace()
    assert pace.rate is None
    for rows, seconds, rate in ((10, 1, 10.0), (10, 4, (0.8 * 10 + 10) / (0.8 * 1 + 4))):
        pace.begin()
        pace.read(rows)
        clock.now += seconds
        pace.finish()
        assert pace.rate == pytest.approx(rate)


def test_rows_of_the_turn_that_is_running_grow_fewer(clock: Clock) -> None:
    pace = Pace()
    pace.begin()
    pace.read(30)
    assert pace.left == 30  # nobody knows how fast
    pace.rate = 10.0
    for seconds, left in ((1.0, 20.0), (1.5, 5.0), (60.0, 0.0)):
        clock.now += seconds
        assert pace.left == pytest.approx(left)
    pace.rest()
    assert pace.left == 0 and pace.started is None


def test_refused_is_who_would_be_delayed_for_too_long(clock: Clock) -> None:
    pace = Pace()
    pace.admit(10**6, MOST_WAITING, 0.0)  # the first turn will tell
    pace.rate = 10.0
    pace.admit(20, 20, 2.0)
    with pytest.raises(BusyError) as refused:
        pace.admit(25, 25, 2.0)
    assert refused.value.seconds == pytest.approx(0.5)
    pace.begin()
    pace.read(10)
    with pytest.raises(BusyError) as refused:
        pace.admit(20, 20, 2.0)
    assert refused.value.seconds == pytest.approx(1.0)


def test_so_many_rows_wait_at_most() -> None:
    pace = Pace()
    pace.admit(0, 2 * MOST_WAITING, 60.0)  # nobody is before it, so it is taken
    with pytest.raises(BusyError):
        pace.admit(1, MOST_WAITING + 1, 60.0)
