"""timm's Eva: EVA-02, DINOv3, PE and other vision transformers with rotary positions."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor, nn

from models.attend.heads import Parts, width_of
from models.families.errors import UnsupportedModelError
from models.families.family import Wanted
from models.families.pooling import pool
from models.families.vit import architecture_of, refuse_unknown_ends, refuse_unknown_mlps
from models.ragged import Rotations
from models.static_attention import StaticAttention


class TimmEva:
    """See `Family`. Raises UnsupportedModelError for a network with unsupported parts."""

    classes: ClassVar[tuple[type[nn.Module], ...]] = (Eva,)

    def __init__(self, eva: Eva) -> None:
        _refuse_unknown(eva)
        self.network = eva
        self.architecture = architecture_of(eva, (eva.head,))

    @property
    def has_cls(self) -> bool:
        """See `Family`."""
        return self.network.cls_token is not None

    @property
    def blocks(self) -> nn.ModuleList:
        """See `Family`."""
        return self.network.blocks

    @property
    def pools_patches(self) -> bool:
        """See `Family`."""
        return self.network.global_pool != "token"

    def embed(
        self, pixels: Float[Tensor, "B C height width"], patches: nn.Module | None
    ) -> tuple[Float[Tensor, "B tokens dim"], Rotations | None]:
        """See `Family`. timm's rotary embeddings are [patches, 2 D], or [depth, heads, patches, 2 D] if each
        block has learned ones."""
        embedded = (self.network.patch_embed if patches is None else patches)(pixels)
        rows, rotations = self.network._pos_embed(embedded)
        if rotations is not None:
            rotations = rotations[None, :, None] if rotations.ndim == 2 else rotations.transpose(1, 2)
            still = torch.zeros_like(rotations[:, :1])
            still[..., still.shape[-1] // 2 :] = 1  # cosines
            rotations = torch.cat((still, rotations), dim=1)
        return self.network.norm_pre(rows), rotations

    def project(self, attn: Any, normed: Tensor, wanted: Wanted) -> Parts:
        """See `Family`. The attention has one layer or three. If EvaAttention has one, its biases are
        separate parameters."""
        if attn.qkv is None:
            layers = {"q": attn.q_proj, "k": attn.k_proj, "v": attn.v_proj}
            return tuple(layers[one](normed) for one in wanted)
        outputs = dict(zip(("q", "kv"), self.parts_asked(attn)["qkv"], strict=True)).get(wanted)
        if getattr(attn, "q_bias", None) is None:
            return (attn.qkv(normed) if outputs is None else attn.qkv.part(normed, outputs),)
        biases = {"q": attn.q_bias, "k": attn.k_bias, "v": attn.v_bias}
        bias = torch.cat([biases[one] for one in wanted])
        if isinstance(attn.qkv, nn.Linear):
            return (F.linear(normed, attn.qkv.weight if outputs is None else attn.qkv.weight[outputs], bias),)
        return ((attn.qkv(normed) if outputs is None else attn.qkv.part(normed, outputs)) + bias,)

    def parts_asked(self, attn: Any) -> dict[str, tuple[slice, ...]]:
        """See `Family`."""
        if attn.qkv is None:
            return {}
        width = width_of(attn)
        return {"qkv": (slice(0, width), slice(width, 3 * width))}

    def scales(self, block: EvaBlock) -> tuple[Tensor | None, Tensor | None]:
        """See `Family`."""
        return block.gamma_1, block.gamma_2

    def norm(self, rows: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """See `Family`."""
        return self.network.norm(rows)

    def pooled(
        self, table: Float[Tensor, "B tokens dim"], gaps: Tensor | None, sizes: Tensor | None
    ) -> Float[Tensor, "B pooled"]:
        """See `Family`. Attention pooling also reads prefix tokens."""
        eva = self.network
        first = 0 if eva.attn_pool is not None else eva.num_prefix_tokens
        pooled = pool(eva, first, table, gaps, sizes) if self.pools_patches else eva.pool(table)
        return eva.fc_norm(pooled)

    def logits(self, pooled: Float[Tensor, "B pooled"]) -> Float[Tensor, "B classes"]:
        """See `Family`."""
        return self.network.head(self.network.head_drop(pooled))

    def features(self, pooled: Float[Tensor, "B pooled"]) -> Float[Tensor, "B features"]:
        """See `Family`."""
        return pooled


def _refuse_unknown(eva: Eva) -> None:
    refuse_unknown_ends(eva)
    if eva.patch_drop is not None:
        raise UnsupportedModelError("it drops random patches during training (patch_drop_rate)")
    for block in eva.blocks:
        if type(block) is not EvaBlock:
            raise UnsupportedModelError(f"it has blocks of class {type(block).__name__}")
        attn = block.attn
        if type(attn) is StaticAttention:
            continue
        if type(attn) not in (EvaAttention, AttentionRope):
            raise UnsupportedModelError(f"it has attention of class {type(attn).__name__}")
        if getattr(attn, "num_kv_heads", attn.num_heads) != attn.num_heads:
            raise UnsupportedModelError("its queries share keys and values (num_kv_heads)")
        if getattr(attn, "qkv_bias_separate", False):
            raise UnsupportedModelError("its attention adds separate biases (qkv_bias_separate)")
    refuse_unknown_mlps(eva)
