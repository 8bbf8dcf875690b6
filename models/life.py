"""Life regression (arXiv 2304.04926): predicts once how long each patch is needed.

A small network, the life predictor, reads the tokens before the first stage and predicts the life of each
patch: in which block it is needed last. After that, no stage computes anything to decide. A keep ratio is a
quantile of an image's lives: a stage that keeps n patches keeps the n with the longest lives. docs/methods.md
says what is known of the paper's method and what was reconstructed.

Training needs gradients, and a choice has none. So in training, all patches are computed to the end, and a
patch fades instead of leaving: see `faded`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.families import Network

# The predictor's place in a network, and so the beginning of its tensors' names in a checkpoint.
NAME = "life"
# How softly a patch fades, in standard deviations of an image's lives: this far below the quantile, 27 % of
# its weight is left.
FADING = 0.25
_SMALLEST_VARIANCE = 1e-12


class LifePredictor(nn.Module):
    """Predicts lives from the tokens that come to ``block`` (0-based), which are ``dim`` wide.

    Of each patch's token and of the mean over all tokens of the image, both normed, one hidden layer of a
    quarter of the width. Computed in float32.
    """

    def __init__(self, dim: int, block: int) -> None:
        super().__init__()
        self.block = block
        hidden = max(1, dim // 4)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.own = nn.Linear(dim, hidden)
        self.whole = nn.Linear(dim, hidden, bias=False)
        self.out = nn.Linear(hidden, 1, bias=False)  # of no bias: lives are relative to each other

    def forward(self, rows: Float[Tensor, "B T D"], prefix: int) -> Float[Tensor, "B N"]:
        """The lives of the patches, which come after ``prefix`` other tokens, in standard deviations from the
        image's mean life."""
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
        """The lives as shares, from 0 to 1, of the blocks from the predictor's to the last: the importance of
        patches under the criterion `life`."""
        lives: Tensor = self(rows, prefix).sigmoid()
        return lives


def add_predictor(network: Network, block: int) -> LifePredictor:
    """A new one in the network, which reads what comes to ``block``. It is one of the network's modules: so
    whatever saves, copies, averages or moves the network does so with it."""
    predictor = LifePredictor(network.embed_dim, block)
    network.add_module(NAME, predictor)
    return predictor


def predictor_of(network: nn.Module) -> LifePredictor | None:
    """The network's own, if it has one."""
    found = getattr(network, NAME, None)
    return found if isinstance(found, LifePredictor) else None


def faded(lives: Float[Tensor, "B N"], counts: Sequence[Sequence[int]]) -> list[Float[Tensor, "B N"]]:
    """How much of each patch is left behind each stage in training: logarithms of weights from 0 to 1.

    ``lives``: as the predictor gives them. ``counts[b][s]``: patches that stage s keeps of image b. The
    quantile q lies in the middle between the last life that stays and the first that goes, and a patch of
    life z has the weight sigmoid((z - q) / FADING). Where a stage keeps all patches, none fades. q has no
    gradient: a patch can gain weight by a longer life only.
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
