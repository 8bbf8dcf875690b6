"""Sums of the seconds of work at every depth of a brown-out, as entries come and go. Pure data."""

from collections.abc import Iterator, Sequence


class Totals:
    """A sum for each depth. Entries that may not be lowered take the same time at every depth, so they have
    one sum."""

    __slots__ = ("_alike", "_alike_entries", "_lowered", "_lowered_entries")

    def __init__(self, depths: int) -> None:
        self._alike, self._alike_entries = 0.0, 0
        self._lowered, self._lowered_entries = [0.0] * depths, 0

    def __repr__(self) -> str:
        return f"<Totals {list(self)}>"

    def __iter__(self) -> Iterator[float]:
        return (self._alike + seconds for seconds in self._lowered)

    def __getitem__(self, depth: int) -> float:
        """The sum at that depth."""
        return self._alike + self._lowered[depth]

    def add(self, seconds: Sequence[float]) -> None:
        """Add an entry with its time at every depth, which never rises with the depth."""
        if seconds[0] == seconds[-1]:
            self._alike += seconds[0]
            self._alike_entries += 1
        else:
            self._lowered = [total + cost for total, cost in zip(self._lowered, seconds, strict=True)]
            self._lowered_entries += 1

    def remove(self, seconds: Sequence[float]) -> None:
        """Remove an entry that was added. After the last one the sums are exactly 0, without rounding
        errors."""
        if seconds[0] == seconds[-1]:
            self._alike_entries -= 1
            self._alike = self._alike - seconds[0] if self._alike_entries else 0.0
            return
        self._lowered_entries -= 1
        if self._lowered_entries:
            self._lowered = [total - cost for total, cost in zip(self._lowered, seconds, strict=True)]
        else:
            self._lowered = [0.0] * len(self._lowered)
