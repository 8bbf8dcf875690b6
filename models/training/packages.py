"""Packages that only some commands need."""


class MissingPackageError(ImportError):
    """A package is not installed; the text says how to get it."""
