"""timm's VisionTransformer: ViT, DeiT, DINOv2, CLIP and similar."""

from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float
from timm.layers import Attention, GluMlp, Mlp, PatchEmbed, SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, LayerScale, VisionTransformer
from torch import Tensor, nn

from models.attend.heads import Parts, width_of
from models.clusters import paca_of
from models.families.errors import UnsupportedModelError
from models.families.family import Wanted
from models.families.pooling import pool
from models.schedule import Architecture
from models.static_attention import StaticAttention, static_blocks_of


class TimmViT:
    """See `Family`. Raises UnsupportedModelError for a ViT with unsupported parts."""

    classes: ClassVar[tuple[type[nn.Module], ...]] = (VisionTransformer, VisionTransformerDistilled)

    def __init__(self, vit: VisionTransformer) -> None:
        _refuse_unknown(vit)
        self.network = vit
        # A distilled model has two heads.
        self.architecture = architecture_of(vit, (vit.head, getattr(vit, "head_dist", None)))

    @property
    def has_cls(self) -> bool:
        """See `Family`."""
        return self.network.cls_token is not None

    @property
    def blocks(self) -> nn.Sequential:
        """See `Family`."""
        return self.network.blocks

    @property
    def pools_patches(self) -> bool:
        """See `Family`."""
        return self.network.global_pool != "token" or self.network.attn_pool is not None

    def embed(
        self, pixels: Float[Tensor, "B C height width"], patches: nn.Module | None
    ) -> tuple[Float[Tensor, "B tokens dim"], None]:
        """See `Family`. Positions are part of the embedding, so there are no rotary embeddings."""
        embedded = (self.network.patch_embed if patches is None else patches)(pixels)
        return self.network.norm_pre(self.network._pos_embed(embedded)), None

    def project(self, attn: Attention, normed: Tensor, wanted: Wanted) -> Parts:
        """See `Family`. A single layer computes all three."""
        if wanted == "qkv":
            return (attn.qkv(normed),)
        queries, keys_and_values = self.parts_asked(attn)["qkv"]
        return (attn.qkv.part(normed, queries if wanted == "q" else keys_and_values),)

    def parts_asked(self, attn: Attention) -> dict[str, tuple[slice, slice]]:
        """See `Family`."""
        width = width_of(attn)
        return {"qkv": (slice(0, width), slice(width, 3 * width))}

    def scales(self, block: Block) -> tuple[Tensor | None, Tensor | None]:
        """See `Family`."""
        first, second = (
            scale.gamma if isinstance(scale, LayerScale) else None for scale in (block.ls1, block.ls2)
        )
        return first, second

    def norm(self, rows: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """See `Family`."""
        return self.network.norm(rows)

    def pooled(
        self, table: Float[Tensor, "B tokens dim"], gaps: Tensor | None, sizes: Tensor | None
    ) -> Float[Tensor, "B pooled"]:
        """See `Family`. A distilled model has two heads, so its two prefix tokens are concatenated."""
        vit = self.network
        if self._is_distilled:
            return table[:, :2].flatten(1)
        first = 0 if vit.pool_include_prefix else vit.num_prefix_tokens
        pooled = pool(vit, first, table, gaps, sizes) if self.pools_patches else vit.pool(table)
        return vit.fc_norm(pooled)

    def logits(self, pooled: Float[Tensor, "B pooled"]) -> Float[Tensor, "B classes"]:
        """See `Family`."""
        if self._is_distilled:
            return self.network.forward_head(pooled.unflatten(1, (2, -1)))
        return self.network.head(self.network.head_drop(pooled))

    def features(self, pooled: Float[Tensor, "B pooled"]) -> Float[Tensor, "B features"]:
        """See `Family`. For a distilled model, the mean of its two prefix tokens."""
        if self._is_distilled:
            return self.network.forward_head(pooled.unflatten(1, (2, -1)), pre_logits=True)
        return pooled

    @property
    def _is_distilled(self) -> bool:
        return isinstance(self.network, VisionTransformerDistilled)


def architecture_of(network: VisionTransformer | Eva, heads: Sequence[nn.Module | None]) -> Architecture:
    """The architecture of a timm network with these ``heads``."""
    projection, mlp = network.patch_embed.proj, network.blocks[0].mlp
    return Architecture(
        depth=len(network.blocks),
        dim=network.embed_dim,
        # A gated MLP has more than two matrices, or two of different sizes, so the hidden width is computed
        # from the number of weights, as if there were two equal matrices.
        mlp_dim=sum(p.numel() for p in mlp.parameters() if p.ndim == 2) // (2 * network.embed_dim),
        grid=tuple(network.patch_embed.grid_size),
        prefix_tokens=network.num_prefix_tokens,
        patch_inputs=projection.weight[0].numel(),
        classes=sum(head.out_features for head in heads if isinstance(head, nn.Linear)),
        paca=paca_of(tuple(network.blocks)),
        static_blocks=static_blocks_of(tuple(network.blocks)),
    )


def _refuse_unknown(vit: VisionTransformer) -> None:
    refuse_unknown_ends(vit)
    if not isinstance(vit.patch_drop, nn.Identity):
        raise UnsupportedModelError("it drops random patches during training (patch_drop_rate)")
    for block in vit.blocks:
        if type(block) is not Block:
            raise UnsupportedModelError(f"it has blocks of class {type(block).__name__}")
        if type(block.attn) not in (Attention, StaticAttention):
            raise UnsupportedModelError(f"it has attention of class {type(block.attn).__name__}")
    refuse_unknown_mlps(vit)


def refuse_unknown_ends(network: VisionTransformer | Eva) -> None:
    """Raise UnsupportedModelError for an unsupported patch embedding or pooling."""
    if type(network.patch_embed) is not PatchEmbed:
        raise UnsupportedModelError(f"its patch embedding is {type(network.patch_embed).__name__}")
    if network.dynamic_img_size:
        raise UnsupportedModelError("it accepts images of any size (dynamic_img_size)")
    if not network.global_pool:
        raise UnsupportedModelError("it has an output per token, not per image (global_pool='')")


def refuse_unknown_mlps(network: VisionTransformer | Eva) -> None:
    """Raise UnsupportedModelError for unsupported MLPs, and for blocks with different attention kernels."""
    for block in network.blocks:
        if type(block.mlp) not in (Mlp, GluMlp, SwiGLU):
            raise UnsupportedModelError(f"it has MLPs of class {type(block.mlp).__name__}")
    attentions = [block.attn for block in network.blocks if type(block.attn) is not StaticAttention]
    for attn in attentions:
        if attn.fused_attn != attentions[0].fused_attn:
            raise UnsupportedModelError("its blocks use different attention kernels")
