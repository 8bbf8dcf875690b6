"""A forward pass of its own over the submodules of a timm VisionTransformer, pruning patches on the way.

Blocks run on packed rows (ragged.py, blocks.py). At keep ratio 1 the same operations run in the same
order as in timm, so the logits are timm's to the last bit; `check_against_timm` asserts it on the loaded
weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from timm.layers import Attention, GluMlp, Mlp, PatchEmbed, SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from models.blocks import plain_block
from models.linear.layer import replace_linears
from models.linear.plain import PlainLinear
from models.pruner import Pruner
from models.ragged import Kept, Packing, Tokens
from models.schedule import UNPRUNED, Architecture, Pruning, Rows, Stages, default_stages

SUPPORTED = (
    "timm's VisionTransformer and VisionTransformerDistilled with plain Block and Attention: "
    "ViT, DeiT, DeiT III, DINOv2 (also with registers), CLIP, with CLS or average pooling"
)


class UnsupportedModelError(ValueError):
    """The model has a part whose patches cannot be pruned correctly."""

    def __init__(self, found: str) -> None:
        super().__init__(f"cannot prune this model: {found}. Supported: {SUPPORTED}.")


@dataclass(frozen=True, slots=True)
class Output:
    """``logits`` [B, classes]; ``kept[s][b]``: ascending indices, row by row in the patch grid of image b,
    of the patches left after stage s (with `merge`, of the ones that the others went into)."""

    logits: Float[Tensor, "B classes"]
    kept: tuple[Kept | tuple[Int[Tensor, " _"], ...], ...]


class PrunedViT(nn.Module):
    """A timm ViT whose every image chooses its own pruning; in the mode that the ViT is in. The linear layers
    of its blocks are replaced by ones that do the same and more (models.linear.plain).

    Raises UnsupportedModelError for a model it does not know how to prune.
    """

    def __init__(self, vit: nn.Module, stages: Stages | None = None) -> None:
        super().__init__()
        _refuse_unknown(vit)
        assert isinstance(vit, VisionTransformer)
        rows: Rows = "cls" if vit.cls_token is not None else "all"
        stages = (stages or default_stages(len(vit.blocks), rows)).fitting(len(vit.blocks))
        if stages.rows == "cls" and vit.cls_token is None:
            raise UnsupportedModelError(
                "the stages read the CLS row, but it has no CLS token (use rows='all')"
            )
        replace_linears(vit.blocks, PlainLinear)
        self.vit = vit
        self.stages = stages
        self.arch = architecture_of(vit)
        # Takes the place of the patch embedding where something is pruned (models.linear.packed).
        self.packed_patches: nn.Module | None = None
        self._first_stage = stages.blocks[0] if stages.blocks else len(vit.blocks)
        self.train(vit.training)

    def forward(self, pixels: Float[Tensor, "B C height width"], prunings: Sequence[Pruning]) -> Output:
        """Classify normalised ``pixels``; ``prunings`` has one entry per image."""
        if len(prunings) != len(pixels):
            raise ValueError(f"{len(pixels)} images, but {len(prunings)} prunings")
        # Nothing to prune: timm's kernels, so that the bits are timm's.
        exact = not self.training and not any(pruning.prunes for pruning in prunings)
        return self.finish(self.begin(pixels, exact=exact), prunings, exact=exact)

    def begin(self, pixels: Float[Tensor, "B C height width"], *, exact: bool = False) -> Tokens:
        """The part of the forward pass that no pruning changes: everything before the first stage's block.

        ``exact`` takes timm's own kernels.
        """
        vit = self.vit
        embed = vit.patch_embed if exact or self.packed_patches is None else self.packed_patches
        rows = vit.norm_pre(vit._pos_embed(embed(pixels)))
        images, length, _ = rows.shape
        tokens = Tokens(
            rows,
            Packing((length,) * images),
            (self.arch.patches,) * images,
            torch.arange(-self.arch.prefix_tokens, self.arch.patches, device=rows.device).repeat(images),
        )
        for block in vit.blocks[: self._first_stage]:
            tokens = plain_block(block, tokens, exact)
        return tokens

    def finish(self, tokens: Tokens, prunings: Sequence[Pruning], *, exact: bool = False) -> Output:
        """The rest of it, from what `begin` gave. ``exact`` needs prunings that prune nothing."""
        if self.stages.blocks and any(pruning.prunes for pruning in prunings):
            return self.finish_by(Pruner(self.stages, self.arch, tokens.rows, prunings), tokens)
        return self.finish_by(None, tokens, exact=exact)

    def finish_by(self, pruner: Pruner | None, tokens: Tokens, *, exact: bool = False) -> Output:
        """As `finish`, with the pruner that is to be used; None: nothing is pruned."""
        places: Sequence[int] = range(len(tokens.patches))
        if pruner is not None:
            tokens, places = pruner.ordered(tokens), pruner.places
        kept: list[Kept] = []
        for index, block in enumerate(self.vit.blocks[self._first_stage :], self._first_stage):
            if index in self.stages.blocks:
                tokens = pruner.stage(block, tokens) if pruner else plain_block(block, tokens, exact)
                kept.append(tokens.kept(self.arch.prefix_tokens, places))
            else:
                tokens = plain_block(block, tokens, exact)
        logits = self._head(tokens, None if pruner is None else pruner.prefix_rows)
        return Output(pruner.as_asked(logits) if pruner else logits, tuple(kept))

    @torch.no_grad()
    def first_importance(self, tokens: Tokens, prunings: Sequence[Pruning]) -> Float[Tensor, "B patches"]:
        """The importance that the first stage gives to each patch, from what `begin` gave, under the
        criterion of each image's pruning. Raises ValueError for a model without stages."""
        if not self.stages.blocks:
            raise ValueError("a model without stages gives its patches no importance")
        pruner = Pruner(self.stages, self.arch, tokens.rows, prunings)
        block = self.vit.blocks[self._first_stage]
        return pruner.as_asked(pruner.first_look(block, pruner.ordered(tokens)).values)

    def _head(self, tokens: Tokens, prefix_rows: Tensor | None) -> Tensor:
        vit = self.vit
        prefix = self.arch.prefix_tokens
        runs = tokens.packing.runs
        if len(runs) > 1 and vit.global_pool == "token" and vit.attn_pool is None:
            # The head reads prefix tokens only: all images in one call, whatever their lengths. (With one
            # length, timm's strides are kept: for some widths the last bits of the product hang on them.)
            if prefix_rows is None:
                rows = torch.cat([run.dense(tokens.rows)[:, :prefix] for run in runs])
            else:
                rows = tokens.rows.index_select(0, prefix_rows).view(-1, prefix, tokens.rows.shape[1])
            return vit.forward_head(vit.norm(rows))
        normed = vit.norm(tokens.rows)
        if tokens.sizes is None or vit.attn_pool is not None or vit.global_pool != "avg":
            return torch.cat([vit.forward_head(run.dense(normed)) for run in runs])
        # The mean over tokens is one over patches: each counts for as many as it stands for.
        pooled = []
        for run in runs:
            sizes = run.dense(tokens.sizes.unsqueeze(-1))
            start = 0 if vit.pool_include_prefix else prefix
            weights = sizes / sizes[:, start:].mean(dim=1, keepdim=True)
            pooled.append(vit.forward_head((run.dense(normed) * weights).to(normed.dtype)))
        return torch.cat(pooled)


def architecture_of(vit: VisionTransformer) -> Architecture:
    """The numbers of a supported model that counts and MACs follow from."""
    projection = vit.patch_embed.proj
    classes = sum(
        head.out_features
        for head in (vit.head, getattr(vit, "head_dist", None))
        if isinstance(head, nn.Linear)
    )
    return Architecture(
        depth=len(vit.blocks),
        dim=vit.embed_dim,
        # A gated MLP has more than two matrices, or two of unequal size: count its weights, two per unit.
        mlp_dim=sum(p.numel() for p in vit.blocks[0].mlp.parameters() if p.ndim == 2) // (2 * vit.embed_dim),
        grid=tuple(vit.patch_embed.grid_size),
        prefix_tokens=vit.num_prefix_tokens,
        patch_inputs=projection.weight[0].numel(),
        classes=classes,
    )


def _refuse_unknown(vit: nn.Module) -> None:
    """An allow-list by exact class: a subclass may do anything in its own forward."""
    if not isinstance(vit, VisionTransformer) or type(vit) not in (
        VisionTransformer,
        VisionTransformerDistilled,
    ):
        raise UnsupportedModelError(f"its class is {type(vit).__name__}")
    if type(vit.patch_embed) is not PatchEmbed:
        raise UnsupportedModelError(f"its patch embedding is {type(vit.patch_embed).__name__}")
    if vit.dynamic_img_size:
        raise UnsupportedModelError("it takes images of any size (dynamic_img_size)")
    if not isinstance(vit.patch_drop, nn.Identity):
        raise UnsupportedModelError("it drops patches at random while training (patch_drop_rate)")
    if not vit.global_pool:
        raise UnsupportedModelError("it answers for each token, not for the image (global_pool='')")
    for block in vit.blocks:
        if type(block) is not Block:
            raise UnsupportedModelError(f"it has blocks of class {type(block).__name__}")
        if type(block.attn) is not Attention:
            raise UnsupportedModelError(f"it has attention of class {type(block.attn).__name__}")
        if type(block.mlp) not in (Mlp, GluMlp, SwiGLU):
            raise UnsupportedModelError(f"it has MLPs of class {type(block.mlp).__name__}")
        if block.attn.fused_attn != vit.blocks[0].attn.fused_attn:
            raise UnsupportedModelError("its blocks use different attention kernels")


@torch.inference_mode()
def check_against_timm(model: PrunedViT, pixels: Float[Tensor, "B C height width"]) -> None:
    """Raise UnsupportedModelError unless keep ratio 1 gives timm's own logits for ``pixels``, bit for bit."""
    was_training = model.training
    model.eval()
    ours = model(pixels, [UNPRUNED] * len(pixels)).logits
    timms = model.vit(pixels)
    model.train(was_training)
    if not torch.equal(ours, timms):
        difference = (ours.float() - timms.float()).abs().max().item()
        raise UnsupportedModelError(
            f"at keep ratio 1 its logits differ from timm's own by up to {difference:g}, "
            "so some part of its forward pass is unknown to TrimViT"
        )
