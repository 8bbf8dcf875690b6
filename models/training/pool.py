"""Add learned queries, which the reducer `pool` needs (models.token_pool), to a network for training."""

from models.load import ModelError, Start
from models.load.start import within
from models.schedule import Stages
from models.token_pool import NAME, add_pools, pool_of


def give_pools(start: Start, stages: Stages, frozen_blocks: int) -> None:
    """Add learned queries to every block that prunes. They start with the checkpoint's weights if these are
    for the same block and patch grid; otherwise they are initialized.

    Raises ValueError if no block prunes, or if new queries would be in the first ``frozen_blocks``, which are
    not trained. Raises ModelError if the weights do not fit.
    """
    if not stages.blocks:
        raise ValueError(
            "--reducers pool needs at least one block that prunes, and there are none; give --stages"
        )
    vit = start.vit
    blocks = tuple(vit.blocks)
    add_pools(blocks, stages.blocks, vit.embed_dim, vit.patch_embed.grid_size)
    for block in stages.blocks:
        pool = pool_of(blocks[block])
        assert pool is not None
        own = within(f"blocks.{block}.{NAME}.", start.added.pools)
        if own and start.added.pool_grid == pool.grid:
            try:
                pool.load_state_dict(own)
            except RuntimeError as error:
                raise ModelError(f"the learned queries of the weights do not fit: {error}") from error
        elif block < frozen_blocks:
            raise ValueError(
                f"--reducers pool: block {block + 1} must learn queries, but --frozen-blocks {frozen_blocks} "
                f"excludes it from training; freeze at most {block} blocks"
            )
        else:
            pool.begin()
