"""What is known of a timm network beside its weights."""

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
                f"{config.path} says that the architecture is {config.architecture}, and --architecture says "
                f"{architecture}; leave the flag out, or move the weights to a folder of their own"
            )
        return config
    if found.architecture and architecture and stem(architecture) != stem(found.architecture):
        log.warning(
            "%s says that it is of %s; it is loaded as %s, as asked for",
            *(file.name, found.architecture, architecture),
        )
        return TimmConfig(architecture=architecture)
    if found.architecture is not None:
        return of_training(architecture or found.architecture, found.arguments)
    return TimmConfig(architecture=architecture)


def stem(architecture: str | None) -> str:
    """timm's name without the tag of its weights; empty for none."""
    return (architecture or "").partition(".")[0]
