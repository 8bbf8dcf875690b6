"""Packages that only some commands need."""


class MissingPackageError(ImportError):
    """A package is not installed. The message says how to install it."""
