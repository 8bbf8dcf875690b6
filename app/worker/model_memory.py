"""Checks whether there is enough memory for another model before it is loaded. It imports torch: for the
worker's process only."""

import torch

from app.worker.memory_room import room_bytes
from app.worker.model_loader import NoRoom
from models.load.size import float32_bytes

# Loading a model needs memory for the content of the file, the network, and the converted weights. Measured
# with the bundled model on a CPU: 2.3 to 2.6 times its weights in float32.
TIMES_ITS_WEIGHTS = 3


def check_memory(reference: str, device: str) -> None:
    """Raises NoRoom, with the numbers, if the host or the device has too little memory for the model, and
    what `models.load.load` raises for a model that does not exist. A model that is not downloaded yet is not
    checked."""
    weights = float32_bytes(reference)
    if weights is None:
        return
    refuse_too_little(weights * TIMES_ITS_WEIGHTS, weights, room_bytes(), "memory")
    if device != "cpu":
        refuse_too_little(weights, weights, _free_on(device), f"memory of {device}")


def refuse_too_little(needed: int, weights: int, room: int | None, of: str) -> None:
    """Raises NoRoom if less memory is known to be free than is needed."""
    if room is not None and room < needed:
        raise NoRoom(
            f"it needs about {_megabytes(needed)} MB of {of} ({needed // weights} times its weights in "
            f"float32), and {_megabytes(room)} MB are free; unload another model first"
        )


def _free_on(device: str) -> int:
    """The free memory of the device, including what PyTorch has reserved and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + kept)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}"
