"""The name that a misspelt one was meant to be."""

from collections.abc import Iterable
from difflib import get_close_matches

_LEAST_LIKENESS = 0.65  # of difflib's ratio; below it the suggestion is more often wrong than right


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that ``word`` is most like, whatever its capitals, hyphens and underscores; None
    where it is like none of them."""
    plain = {_plain(name): name for name in names}
    found = get_close_matches(_plain(word), plain, n=1, cutoff=_LEAST_LIKENESS)
    return plain[found[0]] if found else None


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a sentence that refuses ``word``: "; did you mean NAME?", or nothing."""
    found = nearest(word, names)
    return "" if found is None else f"; did you mean {found}?"


def _plain(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "")
