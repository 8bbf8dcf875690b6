"""What a worker that has served leaves to its successor, which need not find it out again: that the model
passed its check against timm, and what batches took at the warm-up.

The file is taken when it is read and written again when the successor has computed a batch. A worker that
does not come so far leaves none, and the next one trusts nothing.
"""

import logging
from pathlib import Path

import msgspec

from app.messages.capacity import Limits, Measured
from app.messages.model import ModelInfo

log = logging.getLogger(__name__)


class Learned(msgspec.Struct, frozen=True):
    """``measured`` holds for this model, dtype and device (``info``), and for these threads and streams."""

    info: ModelInfo
    limits: Limits
    measured: tuple[Measured, ...]


def remember(path: Path, learned: Learned) -> None:
    """Leave it for the next worker, all of it or nothing. Without room for it, the next one finds out for
    itself."""
    new = path.with_suffix(".new")
    try:
        new.write_bytes(msgspec.json.encode(learned))
        new.replace(path)
    except OSError as error:
        log.warning("cannot save the measured batch times for the next worker: %s", error)


def recall(path: Path, info: ModelInfo, limits: Limits) -> Learned | None:
    """Take what the last worker left; None if it left nothing, or served otherwise."""
    try:
        text = path.read_bytes()
        path.unlink()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("cannot read the batch times that the previous worker measured: %s", error)
        return None
    try:
        learned = msgspec.json.decode(text, type=Learned)
    except msgspec.DecodeError as error:
        log.warning("cannot read the batch times that the previous worker measured: %s", error)
        return None
    return learned if (learned.info, learned.limits) == (info, limits) else None
