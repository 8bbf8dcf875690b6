"""Attention to clusters of patches: patch-to-cluster attention (PaCa, CVPR 2023, arXiv 2203.11987).

In a block that has a `Clustering`, the queries of all tokens attend to M clusters of the image's patches and
to its prefix tokens. With X the normed rows of the patches, the clusters are LN(Z^T X), where Z [N, M] is the
softmax of MLP(X) over the image's own N patches. docs/methods.md says what comes from the paper and what was
reconstructed.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Mlp
from torch import Tensor, nn

from models.linear.mlp import mlp
from models.paca import Paca, hidden_width
from models.ragged import Packing, Run, Tokens, rounded

# The name of the submodule in a block, and so part of its tensors' names in a checkpoint.
NAME = "clusters"
# The standard deviation of a new clustering's softmax inputs: how uneven the weights of the patches are. At
# 2, a cluster consists of about an eighth of the patches.
_SPREAD = 2.0
# The variance of GELU(x) for a standard normal x.
_VARIANCE_OF_GELU = 0.345


class Clustering(nn.Module):
    """Computes ``clusters`` clusters of an image's patches, each with ``dim`` values.

    Weights and means are computed in float32, and only depend on the image's own tokens.
    """

    def __init__(self, dim: int, clusters: int) -> None:
        super().__init__()
        self.clusters = clusters
        # No second bias: a softmax over patches does not change if all of them are shifted alike.
        self.mlp = Mlp(dim, hidden_width(dim), clusters, bias=(True, False))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def source(
        self, tokens: Tokens, normed: Float[Tensor, "*rows D"], prefix: int, *, in_one: bool
    ) -> Tokens:
        """The tokens that replace ``tokens`` as keys and values: each image's first ``prefix`` tokens and its
        clusters.

        ``normed``: the rows of all tokens after the block's norm. ``in_one``: compute images of different
        lengths side by side in one padded table, using only `Tokens.bounds`; otherwise run by run.

        A fused token is clustered like a patch. Tokens that count for several patches as keys
        (`Tokens.bias`) also do so in clusters.
        """
        logits = mlp(self.mlp, normed)
        with torch.autocast(normed.device.type, enabled=False):
            parts = [
                self._beside(own_logits, rows, prefix)
                for own_logits, rows in self._images(tokens, logits, normed, in_one=in_one)
            ]
        images, length = len(tokens.packing.lengths), prefix + self.clusters
        device = normed.device
        # Round the number of rows up if that of the tokens is: fewer shapes.
        packing = Packing((length,) * images, rounded(images * length) if tokens.packing.rows else 0)
        return Tokens(
            packing.pack(parts),
            packing,
            (0,) * images,
            torch.full((images * length,), -1, device=device),  # clusters have no position
            bounds=None
            if tokens.bounds is None
            else torch.arange(0, (images + 1) * length, length, dtype=torch.int32, device=device),
            rotations=tokens.rotations,
        )

    def _images(
        self, tokens: Tokens, logits: Tensor, normed: Tensor, *, in_one: bool
    ) -> Sequence[tuple[Tensor, Tensor]]:
        """The softmax inputs [images, tokens, M] and the rows [images, tokens, D] of neighbouring images. In
        gaps, the softmax inputs are the lowest float32 value."""
        bias = None if tokens.bias is None else tokens.bias.unsqueeze(1)
        runs = tokens.packing.runs
        if in_one and len(runs) > 1:
            return [_side_by_side(tokens, logits, normed, bias)]

        def of(run: Run) -> tuple[Tensor, Tensor]:
            own = run.dense(logits).float()
            if bias is not None:
                own = own + run.dense(bias)
            return own, run.dense(normed)

        return [of(run) for run in runs]

    def _beside(
        self, logits: Float[Tensor, "B T M"], rows: Float[Tensor, "B T D"], prefix: int
    ) -> Float[Tensor, "B prefix_and_M D"]:
        """The rows of the prefix tokens, followed by the clusters of the other tokens."""
        weights = logits[:, prefix:].softmax(dim=1)
        means = weights.mT @ rows[:, prefix:].float()
        norm = self.norm
        clusters = F.layer_norm(
            means, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps
        )
        return torch.cat((rows[:, :prefix], clusters.to(rows.dtype)), dim=1)

    @torch.no_grad()
    def begin(self, norm: nn.Module) -> None:
        """Initialize the weights for training, in a block whose attention reads rows after ``norm``.

        The clusters' own norm leaves a row that comes out of ``norm`` almost unchanged, so keys and values
        see clusters that look like patches. The MLP is drawn at random, so each cluster weighs the patches
        differently.
        """
        gain, shift = getattr(norm, "weight", None), getattr(norm, "bias", None)
        variance = 1.0 if gain is None else float(gain.square().mean())
        mean = 0.0
        if shift is not None:
            variance += float(shift.var(correction=0))
            mean = float(shift.mean())
        self.norm.weight.fill_(variance**0.5)
        self.norm.bias.fill_(mean)
        dim, hidden = self.mlp.fc1.in_features, self.mlp.fc1.out_features
        self.mlp.fc1.weight.normal_(std=(dim * (variance + mean**2)) ** -0.5)
        self.mlp.fc1.bias.zero_()
        self.mlp.fc2.weight.normal_(std=_SPREAD * (hidden * _VARIANCE_OF_GELU) ** -0.5)


def add_clusters(blocks: Sequence[nn.Module], paca: Paca, dim: int) -> None:
    """Add a new `Clustering` to each block that ``paca`` names.

    They are submodules of the blocks, so they are saved, copied, averaged, frozen and moved with the network.
    timm's own forward pass does not call them. Raises ValueError for a block that does not exist.
    """
    paca.beside((), len(blocks))
    for block in paca.blocks:
        blocks[block].add_module(NAME, Clustering(dim, paca.clusters))


def clustering_of(block: nn.Module) -> Clustering | None:
    """The block's `Clustering`, if it has one."""
    found = getattr(block, NAME, None)
    return found if isinstance(found, Clustering) else None


def paca_of(blocks: Sequence[nn.Module]) -> Paca | None:
    """The blocks of a network that attend to clusters, and the number of clusters. None without any."""
    found = {index: each for index, block in enumerate(blocks) if (each := clustering_of(block)) is not None}
    if not found:
        return None
    return Paca(tuple(found), next(iter(found.values())).clusters)


def is_of_clusters(name: str) -> bool:
    """Whether a parameter of this name belongs to a `Clustering`."""
    return f".{NAME}." in name


def _side_by_side(
    tokens: Tokens, logits: Float[Tensor, "*rows M"], normed: Float[Tensor, "*rows D"], bias: Tensor | None
) -> tuple[Float[Tensor, "B T M"], Float[Tensor, "B T D"]]:
    """Put images of different lengths into one table, padded to the longest, using only `Tokens.bounds`."""
    assert tokens.bounds is not None
    starts, ends = tokens.bounds[:-1, None], tokens.bounds[1:, None]
    numbers = starts + torch.arange(tokens.packing.longest, dtype=torch.int32, device=normed.device)
    gaps = numbers >= ends
    shape = gaps.shape
    # Gaps may hold any row that exists; so may missing images (budget.py).
    numbers = numbers.masked_fill(gaps, 0).flatten()

    def beside(rows: Tensor) -> Tensor:
        return rows.flatten(0, -2).index_select(0, numbers).unflatten(0, shape)

    own = beside(logits).float()
    if bias is not None:
        own = own + beside(bias)
    # Not -inf: missing images consist of gaps only, and their softmax would be NaN.
    return own.masked_fill(gaps.unsqueeze(2), torch.finfo(torch.float32).min), beside(normed)
