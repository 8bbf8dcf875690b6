"""The blocks that prune, as users specify them: `4,7,10`, or `every`."""

from typing import Literal

from models.schedule import Rows, Stages, every_block

Blocks = Literal["every"] | tuple[int, ...]


def stages_of(blocks: Blocks | None, rows: Rows | None, own: Stages, depth: int) -> Stages:
    """Replace the ``blocks`` (counted from 1) or the ``rows`` of a model's ``own`` stages; None keeps them.

    `every` means all ``depth`` blocks, and each removes the same number of patches. Listed blocks each remove
    the same share.
    """
    rows = rows or own.rows
    if blocks is None:
        return Stages(own.blocks, rows, own.evenly)
    if blocks == "every":
        return every_block(depth, rows)
    return Stages(tuple(block - 1 for block in blocks), rows)
