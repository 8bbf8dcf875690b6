"""The differences between network classes, one file each behind one protocol (family.py)."""

from torch import nn

from models.families.errors import SUPPORTED, UnsupportedModelError
from models.families.eva import TimmEva
from models.families.family import Family, Network
from models.families.vit import TimmViT

__all__ = ["SUPPORTED", "Family", "Network", "UnsupportedModelError", "family_of"]

_FAMILIES = (TimmViT, TimmEva)


def family_of(network: nn.Module) -> Family:
    """The family of ``network``. Raises UnsupportedModelError for one that cannot be pruned correctly.

    An allow-list by exact class: a subclass may do anything in its own forward.
    """
    for family in _FAMILIES:
        if type(network) in family.classes:
            return family(network)
    raise UnsupportedModelError(f"its class is {type(network).__name__}")
