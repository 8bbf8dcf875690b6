"""Life regression (arXiv 2304.04926): predicts once how long each patch is needed.

A small network, the life predictor, reads the tokens before the first stage and predicts the life of each
patch: the last block in which it is needed. The stages then compute no importance of their own. A keep ratio
is a quantile of an image's lives: a stage that keeps n patches keeps the n with the longest lives.
docs/methods.md says what is known of the paper's method and what was reconstructed.

Selecting patches has no gradient. So in training, all patches are computed to the end, and patches fade
instead of being removed: see `faded`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.families import Network

# The name of the predictor's module in a network, and so the prefix of its tensors' names in a checkpoint.
NAME = "life"
# How gradually patches fade, in standard deviations of an image's lives: a patch this far below the quantile
# has 27 % of its weight.
FADING = 0.25
_SMALLEST_VARIANCE = 1e-12


class LifePredictor(nn.Module):
    """Predicts lives from the input tokens of ``block`` (0-based), which have ``dim`` values.

    An MLP reads each patch's normed token and the mean of all normed tokens of the image. Its one hidden
    layer has ``dim`` / 4 units. Computed in float32.
    """

    def __init__(self, dim: int, block: int) -> None:
        super().__init__()
        self.block = block
        hidden = max(1, dim // 4)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.own = nn.Linear(dim, hidden)
        self.whole = nn.Linear(dim, hidden, bias=False)
        self.out = nn.Linear(hidden, 1, bias=False)  # no bias: lives are standardized per image

    def forward(self, rows: Float[Tensor, "B T D"], prefix: int) -> Float[Tensor, "B N"]:
        """The lives of the patches, which follow ``prefix`` other tokens. They are standardized per image to
        mean 0 and standard deviation 1."""
        norm = self.norm
        with torch.autocast(rows.device.type, enabled=False):
            normed = F.layer_norm(
                rows.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps
            )
            own = F.linear(normed[:, prefix:], self.own.weight.float(), self.own.bias.float())
            whole = F.linear(normed.mean(dim=1, keepdim=True), self.whole.weight.float())
            found = F.linear(F.gelu(own + whole), self.out.weight.float()).squeeze(2)
            return F.layer_norm(found, found.shape[1:], eps=_SMALLEST_VARIANCE)

    @torch.no_grad()
    def lives(self, rows: Float[Tensor, "B T D"], prefix: int) -> Float[Tensor, "B N"]:
        """The lives, from 0 to 1, as shares of the blocks from the predictor's to the last. This is the
        importance of patches under the criterion `life`."""
        lives: Tensor = self(rows, prefix).sigmoid()
        return lives


def add_predictor(network: Network, block: int) -> LifePredictor:
    """Add a new predictor that reads the input of ``block`` to the network. It is a submodule, so it is
    saved, copied, averaged and moved with the network."""
    predictor = LifePredictor(network.embed_dim, block)
    network.add_module(NAME, predictor)
    return predictor


def predictor_of(network: nn.Module) -> LifePredictor | None:
    """The network's life predictor, if it has one."""
    found = getattr(network, NAME, None)
    return found if isinstance(found, LifePredictor) else None


def faded(lives: Float[Tensor, "B N"], counts: Sequence[Sequence[int]]) -> list[Float[Tensor, "B N"]]:
    """The weight of each patch after each stage in training, as logarithms of weights from 0 to 1.

    ``lives``: the output of the predictor. ``counts[b][s]``: the patches of image b that stage s keeps. The
    quantile q is the midpoint between the shortest life that is kept and the longest that is not, and a patch
    with life z has the weight sigmoid((z - q) / FADING). If a stage keeps all patches, none fades. q has no
    gradient, so a patch can only gain weight through a longer life.
    """
    ordered = lives.detach().sort(dim=1, descending=True).values
    patches = lives.shape[1]
    found = []
    for stage in zip(*counts, strict=True):
        kept = torch.tensor(stage, device=lives.device).unsqueeze(1)
        last, next_one = (ordered.gather(1, place) for place in (kept - 1, kept.clamp(max=patches - 1)))
        weights = F.logsigmoid((lives - (last + next_one) / 2) / FADING)
        found.append(torch.where(kept == patches, torch.zeros_like(weights), weights))
    return found
