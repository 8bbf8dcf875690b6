"""Add a life predictor (models.life) to a network for training."""

from models.families.pooling import averages
from models.life import add_predictor
from models.load import ModelError, Start
from models.schedule import Stages


def give_predictor(start: Start, stages: Stages) -> None:
    """Add a life predictor before the first block that prunes. It starts with the checkpoint's weights if
    they were made for the same block.

    Raises ValueError if no block prunes, or if the head does not average patches (training lowers the weight
    of patches, which other pooling ignores). Raises ModelError if the weights do not fit.
    """
    if not stages.blocks:
        raise ValueError("--life needs at least one block that prunes, and there are none; give --stages")
    if not averages(start.vit):
        raise ValueError(
            "--life cannot be used with this network: its head reads patches by their maximum or by "
            "attention, "
            "so their weight cannot be lowered in training"
        )
    predictor = add_predictor(start.vit, stages.blocks[0])
    if start.added.life_block != stages.blocks[0]:
        return
    try:
        predictor.load_state_dict(start.added.life)
    except RuntimeError as error:
        raise ModelError(f"the life predictor of the weights does not fit: {error}") from error
