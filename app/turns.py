"""Decides whose work is next when callers share a few places. Pure policy: no clock, no threads."""

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Turns(Generic[Key]):
    """Assigns ``places`` to waiting work: first to the callers who hold the fewest, in turn among those.

    One caller never holds all places, even while nobody else waits: running work cannot be interrupted, so
    the last place stays free for other callers. With one place, nothing is kept free.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._most = max(1, places - 1)
        self._held: Counter[str] = Counter()
        # The caller who was served last comes last.
        self._waiting: dict[str, dict[Key, None]] = {}

    def __repr__(self) -> str:
        waiting = sum(map(len, self._waiting.values()))
        return f"<Turns: {self._free} free, {self._held.total()} held, {waiting} waiting>"

    def add(self, caller: str, key: Key) -> None:
        """Queue work behind its caller's other work."""
        self._waiting.setdefault(caller, {})[key] = None

    def withdraw(self, caller: str, key: Key) -> None:
        """Remove waiting work. Does nothing if it does not wait."""
        own = self._waiting.get(caller)
        if own is not None:
            own.pop(key, None)
            if not own:
                del self._waiting[caller]

    def take(self) -> tuple[str, Key] | None:
        """The caller whose turn it is and its work, which holds a place from now on. None while no place is
        free or no caller may have it."""
        caller = self._next_caller() if self._free else None
        if caller is None:
            return None
        own = self._waiting.pop(caller)
        key = next(iter(own))
        del own[key]
        if own:
            self._waiting[caller] = own
        self._free -= 1
        self._held[caller] += 1
        return caller, key

    def give_back(self, caller: str) -> None:
        """Free a place of that caller."""
        self._free += 1
        self._held[caller] -= 1
        if not self._held[caller]:
            del self._held[caller]

    def _next_caller(self) -> str | None:
        best, fewest = None, self._most
        for caller in self._waiting:
            held = self._held[caller]
            if held < fewest:
                best, fewest = caller, held
            if not fewest:
                break
        return best
