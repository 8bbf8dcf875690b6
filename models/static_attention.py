"""Static attention: the same attention weights for every image, in the first blocks of a network.

In early blocks, the attention of a trained vision transformer hardly depends on the image. There, one matrix
for each head replaces softmax(Q K^T): what arXiv 2310.07664 calls dynamic-guided static self-attention
(DGSSA). No queries and keys are computed; values, outputs and the rest of the block stay as they are.
docs/methods.md says what comes from the paper and what was reconstructed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.static_blocks import check_static

# What the matrices are made of; a part of its name in a checkpoint.
LOGITS = "logits"
# Of the layer of values, likewise.
_VALUES = "v"
# The least mean weight whose logarithm is taken: it has one in half precision, too.
_LEAST = 1e-20


class StaticAttention(nn.Module):
    """Takes the place of a block's attention module ``attn`` of timm's, with its weights: those of values,
    output, gate and norm. For images of ``tokens`` tokens each.

    The matrices are the softmax of ``logits``, in float32. These are parameters until they are `settled`.
    """

    logits: nn.Parameter | None
    matrices: Tensor | None

    def __init__(self, attn: Any, tokens: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = attn.num_heads, attn.head_dim
        self.v = _values_of(attn)
        like = self.v.weight
        self.logits = nn.Parameter(like.new_zeros((self.num_heads, tokens, tokens), dtype=torch.float32))
        self.register_buffer("matrices", None)
        self.norm, self.gate, self.proj, self.proj_drop = attn.norm, attn.gate, attn.proj, attn.proj_drop
        self.training = attn.training

    def forward(self, x: Float[Tensor, "B T D"], **_of_timm: object) -> Float[Tensor, "B T D"]:
        """What timm's module would give, by these weights. Rotations and masks, which timm's blocks pass on,
        are of no use here: there are no queries and keys."""
        images, tokens, _ = x.shape
        values = self.v(x).view(images, tokens, self.num_heads, self.head_dim)
        # One product for each head, over all images side by side: the matrices are read once.
        beside = values.permute(2, 1, 0, 3).flatten(2)
        mixed = torch.bmm(self.weights().to(beside.dtype), beside)
        mixed = mixed.unflatten(2, (images, self.head_dim)).permute(2, 1, 0, 3).flatten(2)
        mixed = self.norm(mixed)
        if self.gate is not None:
            mixed = mixed * self.gate(x).sigmoid()
        output: Tensor = self.proj_drop(self.proj(mixed))
        return output

    def weights(self) -> Float[Tensor, "H T T"]:
        """The matrices: of each head, the weights of all tokens (columns) for each token (row)."""
        if self.logits is None:
            assert self.matrices is not None
            return self.matrices
        return self.logits.float().softmax(dim=-1)

    @torch.no_grad()
    def inherit(self, weights: Float[Tensor, "H T T"]) -> None:
        """Begin with these weights, whose rows sum to 1."""
        assert self.logits is not None
        self.logits.copy_(weights.clamp(min=_LEAST).log())

    @torch.no_grad()
    def settle(self) -> None:
        """Keep the matrices instead of the logits, which are not trained any more: so no forward pass
        computes a softmax, and another dtype rounds only the result."""
        if self.logits is not None:
            self.matrices, self.logits = self.weights(), None


def make_static(vit: Any, count: int) -> None:
    """Give the first ``count`` blocks of a network of timm's static attention, in place, if they have none
    yet: of even weights, until others are inherited or loaded. Raises ValueError for more blocks than can be.
    """
    blocks = tuple(vit.blocks)
    check_static(count, (), len(blocks), None)
    for block in blocks[:count]:
        if static_of(block) is None:
            tokens = vit.num_prefix_tokens + vit.patch_embed.num_patches
            block.attn = StaticAttention(block.attn, tokens)


def static_of(block: nn.Module) -> StaticAttention | None:
    """The static attention of a block, if it has it."""
    found = getattr(block, "attn", None)
    return found if isinstance(found, StaticAttention) else None


def static_blocks_of(blocks: Sequence[nn.Module]) -> int:
    """How many first blocks have static attention."""
    dynamic = (index for index, block in enumerate(blocks) if static_of(block) is None)
    return next(dynamic, len(blocks))


def settle(blocks: Sequence[nn.Module]) -> None:
    """Keep the matrices of all blocks that have static attention instead of what they are made of."""
    for block in blocks:
        static = static_of(block)
        if static is not None:
            static.settle()


def is_static_logits(name: str) -> bool:
    """Whether a parameter of this name is what static attention is made of."""
    return name.endswith(f".attn.{LOGITS}")


def as_timms(own: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The weights of a `StaticAttention` as those of timm's module that it took the place of, with zeros for
    queries and keys, and its logits. ``expected``: timm's own, by name, of which only the shapes are read.
    Raises KeyError, IndexError and RuntimeError for weights that do not fit."""
    timms = {name: tensor for name, tensor in own.items() if name in expected}
    for name, tensor in expected.items():
        if name not in timms:
            timms[name] = torch.zeros(tensor.shape)
    for what in ("weight", "bias"):
        if f"{_VALUES}.{what}" in own:
            values = own[f"{_VALUES}.{what}"]
            # timm has one layer or three; EvaAttention keeps the biases of one by themselves.
            names = [name for name in (f"v_proj.{what}", f"qkv.{what}", f"v_{what}") if name in expected]
            timms[names[0]][-len(values) :] = values
    return timms, own[LOGITS]


@torch.no_grad()
def _values_of(attn: Any) -> nn.Linear:
    """The layer of values of timm's module, by itself."""
    if attn.qkv is None:
        layer: nn.Linear = attn.v_proj
        return layer
    width = attn.num_heads * attn.head_dim
    weight, bias = attn.qkv.weight[-width:], attn.qkv.bias
    bias = getattr(attn, "v_bias", None) if bias is None else bias[-width:]
    values = nn.Linear(
        weight.shape[1], width, bias=bias is not None, device=weight.device, dtype=weight.dtype
    )
    values.weight.copy_(weight)
    if bias is not None:
        values.bias.copy_(bias)
    return values
