"""The description of a timm network in the files next to its weights."""

import logging
from pathlib import Path

from models.load.config import TimmConfig, config_in, of_training
from models.load.errors import ModelError
from models.load.state_dict import Weights

log = logging.getLogger(__name__)


def known_of(file: Path, found: Weights, architecture: str | None) -> TimmConfig:
    """Return the description of the network in ``file``.

    It comes from the config.json in the same folder, else from the arguments that timm's training script
    saved in the checkpoint, else from ``architecture`` alone. Raises ModelError if config.json and
    ``architecture`` contradict each other.
    """
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
    """Return a timm name without its weight tag, or an empty string for None."""
    return (architecture or "").partition(".")[0]
