"""Static attention: how many of the first blocks can have it, and its cost.

Pure Python, like all code that counts tokens and MACs (schedule.py). The computation is in
static_attention.py.
"""

from models.paca import Paca


def check_static(count: int, stages: tuple[int, ...], depth: int, paca: Paca | None) -> None:
    """Raise ValueError if the first ``count`` of ``depth`` blocks cannot have static attention, because one
    of them is a stage (0-based ``stages``) or attends to clusters (``paca``), or because all are static."""
    if count == 0:
        return
    if count >= depth:
        raise ValueError(
            f"{count} blocks with static attention are too many: the network has {depth} blocks, of which at "
            f"most the first {depth - 1} can have it"
        )
    they = "block 1 has" if count == 1 else f"blocks 1 to {count} have"
    pruning = [block + 1 for block in stages if block < count]
    if pruning:
        raise ValueError(
            f"{they} static attention, so block {pruning[0]} cannot prune, because the image's own attention "
            f"decides which patches are kept; choose stages from block {count + 1} on{_or_fewer(pruning[0])}"
        )
    clustered = [] if paca is None else [block + 1 for block in paca.blocks if block < count]
    if clustered:
        raise ValueError(
            f"{they} static attention, so block {clustered[0]} cannot attend to clusters of patches (PaCa); "
            f"choose blocks with clusters from block {count + 1} on{_or_fewer(clustered[0])}"
        )


def _or_fewer(block: int) -> str:
    """The end of an error message: how many blocks before ``block`` (counted from 1) can be static."""
    return "" if block == 1 else f", or at most {block - 1} static block{'s' if block > 2 else ''}"


def attention_macs(dim: int, tokens: int) -> int:
    """Multiply-accumulates of the static attention of one image: values and outputs of all tokens, and the
    product of the matrices with the values."""
    return 2 * tokens * dim * dim + tokens * tokens * dim
