"""Add attention to clusters (models.clusters) to a network for training."""

from models.clusters import NAME, add_clusters, clustering_of
from models.load import ModelError, Start
from models.load.start import within
from models.paca import Paca
from models.schedule import Stages
from models.stage_blocks import Blocks

# One of the numbers that PaCa uses (arXiv 2203.11987): as many clusters as cells in a 7 x 7 grid.
CLUSTERS = 49


def paca_named(blocks: Blocks, clusters: int | None, stages: Stages, depth: int) -> Paca:
    """Return the settings that the flags specify. ``blocks`` are counted from 1; `every` means all blocks
    that do not prune.

    Raises ValueError for blocks that prune, and for blocks beyond the ``depth`` of the network.
    """
    if blocks == "every":
        named = tuple(block for block in range(depth) if block not in stages.blocks)
        if not named:
            raise ValueError(
                "--paca-blocks every finds no block that can attend to clusters, because all blocks prune; "
                "choose other --stages"
            )
    else:
        named = tuple(block - 1 for block in blocks)
    return Paca(named, clusters or CLUSTERS).beside(stages.blocks, depth)


def give_clusters(start: Start, paca: Paca, frozen_blocks: int) -> None:
    """Add clustering modules to the network. A module starts with the checkpoint's weights if they are for
    the same block and number of clusters; otherwise it is initialized.

    Raises ValueError for a new module in the first ``frozen_blocks``, which are not trained, and ModelError
    if the weights do not fit.
    """
    blocks = tuple(start.vit.blocks)
    add_clusters(blocks, paca, start.vit.embed_dim)
    for block in paca.blocks:
        clustering = clustering_of(blocks[block])
        assert clustering is not None
        own = within(f"blocks.{block}.{NAME}.", start.added.clusters)
        if own and len(own["mlp.fc2.weight"]) == paca.clusters:
            try:
                clustering.load_state_dict(own)
            except RuntimeError as error:
                raise ModelError(f"the clusters of the weights do not fit: {error}") from error
        elif block < frozen_blocks:
            raise ValueError(
                f"--paca-blocks: block {block + 1} must learn clusters, but --frozen-blocks {frozen_blocks} "
                "excludes it from training; choose other blocks"
            )
        else:
            clustering.begin(blocks[block].norm1)
