"""Which units of work kill their workers; in a file of its own, for its actor needs no torch."""

from collections import Counter


class Attempts:
    """Counts units that were begun and never ended: their workers died."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()

    def begin(self, unit: str) -> int:
        """How often the unit was begun before."""
        self.begun[unit] += 1
        return self.begun[unit] - 1

    def end(self, unit: str) -> None:
        """The worker lives, and its unit is counted anew."""
        del self.begun[unit]
