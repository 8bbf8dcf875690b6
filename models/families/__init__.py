"""The supported classes of networks, one file each, with a common protocol (family.py)."""

from torch import nn

from models.families.errors import SUPPORTED, UnsupportedModelError
from models.families.eva import TimmEva
from models.families.family import Family, Network
from models.families.vit import TimmViT

__all__ = ["SUPPORTED", "Family", "Network", "UnsupportedModelError", "family_of"]

_FAMILIES = (TimmViT, TimmEva)


def family_of(network: nn.Module) -> Family:
    """Wrap ``network`` in its family. Raises UnsupportedModelError if it cannot be pruned correctly.

    Only exact classes are accepted, because a subclass may do anything in its own forward.
    """
    for family in _FAMILIES:
        if type(network) in family.classes:
            return family(network)
    raise UnsupportedModelError(f"its class is {type(network).__name__}")
