"""The blocks that prune, as users name them: 4,7,10, or every."""

from typing import Literal

from models.schedule import Rows, Stages, every_block

Blocks = Literal["every"] | tuple[int, ...]


def stages_of(blocks: Blocks | None, rows: Rows | None, own: Stages, depth: int) -> Stages:
    """A model's ``own`` stages with other ``blocks``, counted from 1, or other ``rows``; None leaves its own.

    `every` are all blocks of a model of ``depth``, which lose patches evenly; of blocks that are named, each
    loses a share.
    """
    rows = rows or own.rows
    if blocks is None:
        return Stages(own.blocks, rows, own.evenly)
    if blocks == "every":
        return every_block(depth, rows)
    return Stages(tuple(block - 1 for block in blocks), rows)
