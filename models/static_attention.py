"""Static attention: the same attention weights for every image, in the first blocks of a network.

In early blocks, the attention of a trained vision transformer hardly depends on the image. There, one matrix
per head replaces softmax(Q K^T): dynamic-guided static self-attention (DGSSA, arXiv 2310.07664). Queries and
keys are not computed; values, outputs and the rest of the block do not change. docs/methods.md says what
comes from the paper and what was reconstructed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.static_blocks import check_static

# The parameter whose softmax gives the matrices; part of its name in a checkpoint.
LOGITS = "logits"
# The layer of the values; part of its name in a checkpoint.
_VALUES = "v"
# Attention weights are clamped to this before their logarithm, so that it is finite, also in half precision.
_LEAST = 1e-20


class StaticAttention(nn.Module):
    """Replaces a timm attention module ``attn``, for images of ``tokens`` tokens.

    It takes over the weights of the values, output, gate and norm. The attention matrices are the softmax of
    ``logits``, in float32. ``logits`` is a parameter until `settle` is called.
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
        """Compute the output of timm's attention with the static weights. The rotary embeddings and masks
        that timm's blocks pass on are ignored, because there are no queries and keys."""
        images, tokens, _ = x.shape
        values = self.v(x).view(images, tokens, self.num_heads, self.head_dim)
        # One product per head with all images side by side, so each matrix is read only once.
        beside = values.permute(2, 1, 0, 3).flatten(2)
        mixed = torch.bmm(self.weights().to(beside.dtype), beside)
        mixed = mixed.unflatten(2, (images, self.head_dim)).permute(2, 1, 0, 3).flatten(2)
        mixed = self.norm(mixed)
        if self.gate is not None:
            mixed = mixed * self.gate(x).sigmoid()
        output: Tensor = self.proj_drop(self.proj(mixed))
        return output

    def weights(self) -> Float[Tensor, "H T T"]:
        """The attention matrices: for each head and token (row), the weights of all tokens (columns)."""
        if self.logits is None:
            assert self.matrices is not None
            return self.matrices
        return self.logits.float().softmax(dim=-1)

    @torch.no_grad()
    def inherit(self, weights: Float[Tensor, "H T T"]) -> None:
        """Set the logits so that the matrices equal ``weights``, whose rows sum to 1."""
        assert self.logits is not None
        self.logits.copy_(weights.clamp(min=_LEAST).log())

    @torch.no_grad()
    def settle(self) -> None:
        """Replace the logits by the matrices for inference. Forward passes then need no softmax, and a change
        of dtype only rounds the result of the softmax."""
        if self.logits is not None:
            self.matrices, self.logits = self.weights(), None


def make_static(vit: Any, count: int) -> None:
    """Replace the attention of the first ``count`` blocks of a timm network by static attention, in place.

    Blocks that already have static attention are left as they are. The new weights are uniform until others
    are inherited or loaded. Raises ValueError if ``count`` is too large.
    """
    blocks = tuple(vit.blocks)
    check_static(count, (), len(blocks), None)
    for block in blocks[:count]:
        if static_of(block) is None:
            tokens = vit.num_prefix_tokens + vit.patch_embed.num_patches
            block.attn = StaticAttention(block.attn, tokens)


def static_of(block: nn.Module) -> StaticAttention | None:
    """The block's static attention, if it has one."""
    found = getattr(block, "attn", None)
    return found if isinstance(found, StaticAttention) else None


def static_blocks_of(blocks: Sequence[nn.Module]) -> int:
    """The number of leading blocks with static attention."""
    dynamic = (index for index, block in enumerate(blocks) if static_of(block) is None)
    return next(dynamic, len(blocks))


def settle(blocks: Sequence[nn.Module]) -> None:
    """Call `StaticAttention.settle` in all blocks that have static attention."""
    for block in blocks:
        static = static_of(block)
        if static is not None:
            static.settle()


def is_static_logits(name: str) -> bool:
    """Whether a parameter of this name is the ``logits`` of static attention."""
    return name.endswith(f".attn.{LOGITS}")


def as_timms(own: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Convert the weights of a `StaticAttention` to those of the timm module that it replaced, with zeros for
    queries and keys. Returns these weights and the logits.

    ``own``: the weights of the `StaticAttention` by name. ``expected``: those of timm's module by name, of
    which only the shapes are read. Raises KeyError, IndexError or RuntimeError for weights that do not fit.
    """
    timms = {name: tensor for name, tensor in own.items() if name in expected}
    for name, tensor in expected.items():
        if name not in timms:
            timms[name] = torch.zeros(tensor.shape)
    for what in ("weight", "bias"):
        if f"{_VALUES}.{what}" in own:
            values = own[f"{_VALUES}.{what}"]
            # timm uses one layer or three. If EvaAttention uses one, its biases are separate parameters.
            names = [name for name in (f"v_proj.{what}", f"qkv.{what}", f"v_{what}") if name in expected]
            timms[names[0]][-len(values) :] = values
    return timms, own[LOGITS]


@torch.no_grad()
def _values_of(attn: Any) -> nn.Linear:
    """The layer that computes the values in timm's module; split off if timm has one layer for all three."""
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
