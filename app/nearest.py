"""Finds the name that a misspelled one was meant to be."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

_LEAST_LIKENESS = 0.65  # of difflib's ratio; suggestions below it are usually wrong


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that is most similar to ``word``, ignoring case, hyphens and underscores. None if
    none is similar. A word that is part of a name stands for the shortest name that has it."""
    plain = {_plain(name): name for name in names}
    found = get_close_matches(_plain(word[:100]), plain, n=1, cutoff=_LEAST_LIKENESS)
    if found:
        return plain[found[0]]
    parts = [name for name in plain.values() if _plain(word) in map(_plain, re.split("[-_ ]", name))]
    return min(parts, key=len, default=None)


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of an error message about ``word``: "; did you mean NAME?", or nothing."""
    found = nearest(word, names)
    return "" if found is None else f"; did you mean {found}?"


def same(word: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that differs from ``word`` only in case, hyphens and underscores."""
    plain = _plain(word[:100])
    return next((name for name in names if _plain(name) == plain), None)


def _plain(name: str) -> str:
    return re.sub(r"[-_\[\]\s]", "", name.casefold())
