"""What a worker stores for its successor, which need not measure it again: that the model passed its check
against timm, and the batch times of the warm-up.

The file is deleted when it is read, and written again when the successor has computed a batch. A worker that
fails before leaves no file, and the next one measures everything again.
"""

import logging
from pathlib import Path

import msgspec

from app.messages.capacity import Limits, Measured
from app.messages.model import ModelInfo

log = logging.getLogger(__name__)


class Learned(msgspec.Struct, frozen=True):
    """``measured`` is valid for this model, dtype and device (``info``), and for this number of threads and
    streams."""

    info: ModelInfo
    limits: Limits
    measured: tuple[Measured, ...]


def remember(path: Path, learned: Learned) -> None:
    """Store it for the next worker, atomically. If that fails, the next one measures again."""
    new = path.with_suffix(".new")
    try:
        new.write_bytes(msgspec.json.encode(learned))
        new.replace(path)
    except OSError as error:
        log.warning("cannot save the measured batch times for the next worker: %s", error)


def recall(path: Path, info: ModelInfo, limits: Limits) -> Learned | None:
    """Take what the last worker stored. None if it stored nothing, or had another configuration."""
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
