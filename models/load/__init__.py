"""Load a model by reference: a validated PrunedViT with its labels and input spec."""

from models.load.card import Card, dtypes_of, read_card, save
from models.load.errors import ModelError
from models.load.fit import HEADS
from models.load.input_spec import input_spec_of
from models.load.labels import read_labels
from models.load.model import LoadedModel, load
from models.load.start import Start, create

__all__ = [
    "HEADS",
    "Card",
    "LoadedModel",
    "ModelError",
    "Start",
    "create",
    "dtypes_of",
    "input_spec_of",
    "load",
    "read_card",
    "read_labels",
    "save",
]
