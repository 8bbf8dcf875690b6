"""Read files written by `torch.save` without running code from them.

Weights are read with torch's ``weights_only``. Other objects that training scripts save with them
(configurations, paths, numpy numbers, custom classes) are replaced by empty objects. Files that reference
functions used in attacks are rejected.
"""

import argparse
import collections
import pickle
import re
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

_MOST_CLASSES = 200

# Modules of the standard library, and builtins, whose classes may be replaced by a stand-in.
_HARMLESS_MODULES = frozenset(
    {"abc", "argparse", "collections", "copyreg", "dataclasses", "datetime", "decimal", "enum", "fractions"}
    | {"functools", "logging", "numbers", "pathlib", "random", "re", "string", "time", "types", "typing"}
    | {"uuid", "zoneinfo", "__main__"}
)
_HARMLESS_BUILTINS = frozenset(
    {"bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "range", "slice", "str", "tuple"}
)
# Pickles with protocol 2 use the module names of Python 2.
_OF_PYTHON_2 = frozenset(
    {"commands", "popen2", "imp", "thread", "cPickle", "httplib", "urllib2", "SocketServer"}
)
_OF_TORCH_REFUSED = (
    *("torch.hub", "torch.load", "torch.serialization", "torch.jit", "torch.package"),
    *("torch.ops", "torch.classes", "torch.utils.cpp_extension", "torch.multiprocessing"),
)


class UnsafePickleError(ValueError):
    """The file references something that no checkpoint needs."""


class StandIn:
    """Placeholder for an object of an unknown class. It is empty and does nothing."""

    def __new__(cls, *_arguments: object, **_named: object) -> Any:
        """Accept the arguments of any class."""
        return object.__new__(cls)

    def __init__(self, *_arguments: object, **_named: object) -> None:
        """Ignore the arguments."""

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


class _MappingStandIn(StandIn):
    """Placeholder for a dictionary of an unknown class."""

    def __new__(cls, *_arguments: object, **_named: object) -> Any:
        return collections.OrderedDict()


class _ListStandIn(list[Any], StandIn):
    """Placeholder for a list of an unknown class."""

    def __new__(cls, *_arguments: object, **_named: object) -> Any:
        return list.__new__(cls)


# Classes with a specific replacement. `state_dict.py` reads the arguments of training scripts from the
# namespaces.
_KNOWN: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": types.SimpleNamespace,
    "collections.defaultdict": _MappingStandIn,
}


def load_pickle(path: Path) -> object:
    """Load the content of a file. Raises UnsafePickleError if the file calls functions that no checkpoint
    needs. Errors of torch for unreadable files pass through (pickle.UnpicklingError, EOFError, RuntimeError
    and others)."""
    classes = dict(_KNOWN)
    for name in _names_in(path):
        _add_stand_in(classes, name)
    for _ in range(_MOST_CLASSES):
        try:
            with safe_globals([(kind, name) for name, kind in classes.items()]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickle protocols; our own errors are clearer
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if not _can_go_on(classes, str(error)):
                raise
    raise UnsafePickleError(f"it names more than {_MOST_CLASSES} classes")


def _names_in(path: Path) -> list[str]:
    """Return the globals in the file that torch does not allow, or an empty list if the format cannot list
    them in advance."""
    try:
        return get_unsafe_globals_in_checkpoint(path)
    except Exception:
        return []  # torch then reports them one by one


def _can_go_on(classes: dict[str, Any], error: str) -> bool:
    """Add or change one stand-in in ``classes`` according to torch's error. Returns whether loading is worth
    another attempt."""
    if found := re.search(r"Unsupported global: GLOBAL (\S+) was not an allowed", error):
        name = found[1] if "." in found[1] else f"builtins.{found[1]}"  # torch leaves `builtins` out
        if name in classes:
            return False
        _add_stand_in(classes, name)
        return True
    for pattern, kind in (
        (r"Can only SETITEM.*got <class '(.+)'>", _MappingStandIn),
        (r"Can only append.*got <class '(.+)'>", _ListStandIn),
    ):
        found = re.search(pattern, error)
        if found and found[1] in classes:
            classes[found[1]] = type("Kind", (kind,), {})
            return True
    return False


def _add_stand_in(classes: dict[str, Any], name: str) -> None:
    if name in classes:
        return
    module, _, rest = name.partition(".")
    if module == "builtins":
        harmless = rest in _HARMLESS_BUILTINS
    elif module == "torch":
        harmless = not name.startswith(_OF_TORCH_REFUSED)
    else:
        of_python = module in sys.stdlib_module_names or module in _OF_PYTHON_2
        harmless = module in _HARMLESS_MODULES or not of_python
    if not harmless:
        raise UnsafePickleError(f"it calls {name}, which no checkpoint needs and which could run code")
    qualified, _, last = name.rpartition(".")
    classes[name] = type(last, (StandIn,), {"__module__": qualified})
