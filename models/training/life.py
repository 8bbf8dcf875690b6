"""A life predictor for a network to train (models.life)."""

from models.families.pooling import averages
from models.life import add_predictor
from models.load import ModelError, Start
from models.schedule import Stages


def give_predictor(start: Start, stages: Stages) -> None:
    """Put one into the network, which reads what comes to the first stage: the checkpoint's own, if that was
    made for this block.

    Raises ValueError for stages that have no first one, and for a network whose head reads patches otherwise
    than by their average: in training, patches fade, which it would not see. ModelError for weights that do
    not fit.
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
