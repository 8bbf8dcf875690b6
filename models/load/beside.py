"""The description of a timm network in the files next to its weights."""

import logging
from pathlib import Path

from models.load.config import TimmConfig, config_in, of_training
from models.load.errors import ModelError
from models.load.state_dict import Weights

log = logging.getLogger(__name__)


def known_of(file: Path, found: Weights, architecture: str | None) -> TimmConfig:
    """What config.json beside the file says, else what timm's training script wrote into it, else the
    architecture named."""
    config = config_in(file.parent)
    if config is not None:
        if architecture is not None and stem(architecture) != stem(config.architecture):
            raise ModelError(
                f"{config.path} names the architecture {config.architecture}, but --architecture is "
                f"{architecture}; leave the flag out, or move the weights to another folder"
            )
        return config
    if found.architecture and architecture and stem(architecture) != stem(found.architecture):
        log.warning(
            "%s names the architecture %s; it is loaded as %s, as requested",
            *(file.name, found.architecture, architecture),
        )
        return TimmConfig(architecture=architecture)
    if found.architecture is not None:
        return of_training(architecture or found.architecture, found.arguments)
    return TimmConfig(architecture=architecture)


def stem(architecture: str | None) -> str:
    """timm's name without the tag of its weights; empty for none."""
    return (architecture or "").partition(".")[0]
