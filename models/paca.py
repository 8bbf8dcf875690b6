"""Patch-to-cluster attention (PaCa): which blocks use it, with how many clusters, and its cost.

Pure Python, like all code that counts tokens and MACs (schedule.py). The computation is in clusters.py.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Paca:
    """The blocks (0-based, ascending) in which all tokens attend to ``clusters`` clusters of the patches
    instead of the patches themselves. Raises ValueError for invalid values."""

    blocks: tuple[int, ...]
    clusters: int

    def __post_init__(self) -> None:
        blocks = list(self.blocks)
        if not blocks or blocks != sorted(set(blocks)) or blocks[0] < 0:
            raise ValueError(f"blocks with clusters must be ascending indices from 0, got {self.blocks}")
        if self.clusters < 1:
            raise ValueError(f"clusters must be at least 1, got {self.clusters}")

    def beside(self, stages: tuple[int, ...], depth: int) -> "Paca":
        """Check that these blocks work with ``stages`` in a network of ``depth`` blocks, and return self.

        Raises ValueError for a block that is also a stage, since its criterion needs the attention to
        patches, and for a block that the network does not have.
        """
        if self.blocks[-1] >= depth:
            raise ValueError(
                f"block {self.blocks[-1] + 1} cannot attend to clusters: the network has {depth} blocks "
                "(counted from 1)"
            )
        both = [str(block + 1) for block in self.blocks if block in stages]
        if both:
            they = f"blocks {', '.join(both)} attend" if len(both) > 1 else f"block {both[0]} attends"
            raise ValueError(
                f"{they} to clusters of patches (PaCa) and cannot prune, because the attention to patches "
                "decides which patches are kept; choose other stages"
            )
        return self


def hidden_width(dim: int) -> int:
    """The hidden width of the MLP that clusters patches of ``dim`` values."""
    return max(1, dim // 4)


def attention_macs(dim: int, tokens: int, prefix: int, clusters: int) -> int:
    """Multiply-accumulates of this attention for one image with ``tokens`` tokens, ``prefix`` of them prefix
    tokens: the clustering MLP, the clusters themselves, queries and outputs of all tokens, keys and values of
    clusters and prefix tokens, and the attention to these."""
    keys, hidden = prefix + clusters, hidden_width(dim)
    clustering = tokens * hidden * (dim + clusters) + (tokens - prefix) * clusters * dim
    return clustering + 2 * (tokens + keys) * dim * dim + 2 * tokens * keys * dim
