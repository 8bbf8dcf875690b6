"""A forward pass of its own over the submodules of a timm VisionTransformer, pruning patches on the way.

Blocks run on packed rows (see ragged.py). At keep ratio 1 the same operations run in the same order as in
timm, so the logits are timm's to the last bit; `check_against_timm` asserts it on the loaded weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers import Attention, GluMlp, Mlp, PatchEmbed, SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from models.criteria import attention_rows, importance, most_important
from models.ragged import Packing, Run, runs_of
from models.schedule import Architecture, Criterion, Rows, Stages, default_stages, keep_counts

SUPPORTED = (
    "timm's VisionTransformer and VisionTransformerDistilled with plain Block and Attention: "
    "ViT, DeiT, DeiT III, DINOv2 (also with registers), CLIP, with CLS or average pooling"
)


class UnsupportedModelError(ValueError):
    """The model has a part whose patches cannot be pruned correctly."""

    def __init__(self, found: str) -> None:
        super().__init__(f"cannot prune this model: {found}. Supported: {SUPPORTED}.")


@dataclass(frozen=True, slots=True)
class Pruning:
    """What one image asks for. ``seed`` is read by the `random` criterion only."""

    keep_ratio: float = 1.0
    criterion: Criterion = "variance"
    seed: int = 0


UNPRUNED = Pruning()


@dataclass(frozen=True, slots=True)
class Output:
    """``logits`` [B, classes]; ``kept[s][b]``: ascending indices, row by row in the patch grid of image b,
    of the patches left after stage s."""

    logits: Float[Tensor, "B classes"]
    kept: tuple[tuple[Int[Tensor, " _"], ...], ...]


@dataclass(slots=True)
class _State:
    """The tokens on their way through the blocks: ``rows`` as ragged.py packs them, and ``patch_ids``, where
    each remaining patch stood in its image (flat, no entries for prefix tokens)."""

    rows: Tensor
    packing: Packing
    patch_ids: Tensor


class PrunedViT(nn.Module):
    """A timm ViT whose every image chooses its own keep ratio and criterion; in the mode that the ViT is in.

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
        self.vit = vit
        self.stages = stages
        self.arch = architecture_of(vit)
        self.train(vit.training)

    def forward(self, pixels: Float[Tensor, "B C height width"], prunings: Sequence[Pruning]) -> Output:
        """Classify normalised ``pixels``; ``prunings`` has one entry per image."""
        if len(prunings) != len(pixels):
            raise ValueError(f"{len(pixels)} images, but {len(prunings)} prunings")
        # Larger ratios first: counts never rise with a smaller ratio, so at every stage the images of one
        # length are neighbours and the packed rows need no reordering on the way.
        order = sorted(range(len(prunings)), key=lambda image: -prunings[image].keep_ratio)
        sorted_already = order == list(range(len(order)))
        if not sorted_already:
            pixels = pixels[torch.tensor(order, device=pixels.device)]
        ordered = [prunings[image] for image in order]
        counts = [
            keep_counts(self.arch.patches, pruning.keep_ratio, len(self.stages.blocks)) for pruning in ordered
        ]
        # Nothing to prune: timm's kernels, so that the bits are timm's.
        exact = not self.training and all(pruning.keep_ratio == 1 for pruning in prunings)

        state = self._embed(pixels)
        kept: list[tuple[Tensor, ...]] = []
        for index, block in enumerate(self.vit.blocks):
            if index in self.stages.blocks:
                stage = len(kept)
                self._stage_block(block, state, ordered, [count[stage] for count in counts], exact)
                kept.append(state.patch_ids.split([count[stage] for count in counts]))
            else:
                self._block(block, state, exact)
        logits = self._head(state)

        if not sorted_already:
            place = sorted(range(len(order)), key=order.__getitem__)
            logits = logits[torch.tensor(place, device=logits.device)]
            kept = [tuple(stage[image] for image in place) for stage in kept]
        return Output(logits, tuple(kept))

    def _embed(self, pixels: Tensor) -> _State:
        vit = self.vit
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(pixels)))
        images, length, _ = tokens.shape
        patch_ids = torch.arange(self.arch.patches, device=tokens.device).repeat(images)
        return _State(tokens, Packing((length,) * images), patch_ids)

    def _block(self, block: Block, state: _State, exact: bool) -> None:
        self._attend(block, state, exact)
        self._mlp(block, state)

    def _stage_block(
        self, block: Block, state: _State, prunings: Sequence[Pruning], counts: Sequence[int], exact: bool
    ) -> None:
        qkv = self._attend(block, state, exact)
        self._prune(block.attn, qkv, state, prunings, counts)
        self._mlp(block, state)

    def _attend(self, block: Block, state: _State, exact: bool) -> Tensor:
        """The attention half of a block; gives back its query, key and value rows [*rows, 3 * H * D]."""
        attn = block.attn
        normed = block.norm1(state.rows)
        qkv = attn.qkv(normed)
        mixed = state.packing.pack(
            [_attention(attn, *_heads(attn, qkv, run), exact) for run in state.packing.runs]
        )
        mixed = attn.norm(mixed)
        if attn.gate is not None:
            mixed = mixed * attn.gate(normed).sigmoid()
        update = block.ls1(attn.proj_drop(attn.proj(mixed)))
        state.rows = state.rows + _drop_path(block.drop_path1, update, state.packing)
        return qkv

    def _mlp(self, block: Block, state: _State) -> None:
        update = block.ls2(block.mlp(block.norm2(state.rows)))
        state.rows = state.rows + _drop_path(block.drop_path2, update, state.packing)

    def _prune(
        self,
        attn: Attention,
        qkv: Tensor,
        state: _State,
        prunings: Sequence[Pruning],
        counts: Sequence[int],
    ) -> None:
        """Drop all but ``counts[b]`` patches of image b, from the rows and the patch ids."""
        prefix = self.arch.prefix_tokens
        lengths = state.packing.lengths
        if all(count == length - prefix for count, length in zip(counts, lengths, strict=True)):
            return
        device = qkv.device
        row_parts, patch_parts = [], []
        keys = [(count, pruning.criterion) for count, pruning in zip(counts, prunings, strict=True)]
        for run in runs_of(lengths, keys):
            patches = run.tokens - prefix
            count, criterion = keys[run.first_image]
            first_patch = run.start - run.first_image * prefix
            patch_base = first_patch + patches * torch.arange(run.images, device=device).unsqueeze(1)
            row_base = run.start + run.tokens * torch.arange(run.images, device=device).unsqueeze(1)
            if count == patches:
                positions = torch.arange(patches, device=device).expand(run.images, -1)
            else:
                seeds = [prunings[run.first_image + image].seed for image in range(run.images)]
                ids = state.patch_ids[first_patch : first_patch + run.images * patches]
                values = self._importance(attn, qkv, run, criterion, ids.view(run.images, patches), seeds)
                positions = most_important(values, count)
            prefix_rows = torch.arange(prefix, device=device).expand(run.images, -1)
            row_parts.append((row_base + torch.cat((prefix_rows, positions + prefix), dim=1)).flatten())
            patch_parts.append((patch_base + positions).flatten())
        kept_packing = Packing(tuple(count + prefix for count in counts))
        state.rows = state.packing.select(state.rows, row_parts, kept_packing)
        state.patch_ids = state.patch_ids.index_select(0, torch.cat(patch_parts))
        state.packing = kept_packing

    @torch.no_grad()
    def _importance(
        self,
        attn: Attention,
        qkv: Tensor,
        run: Run,
        criterion: Criterion,
        patch_ids: Tensor,
        seeds: Sequence[int],
    ) -> Tensor:
        prefix = self.arch.prefix_tokens
        q, k, v = _heads(attn, qkv, run)
        rows = attention_rows(q, k, attn.scale, self.stages.rows)
        return importance(
            criterion,
            rows[:, :, prefix:],
            values=v[:, :, prefix:],
            patch_ids=patch_ids,
            seeds=torch.tensor(seeds, device=qkv.device),
        )

    def _head(self, state: _State) -> Tensor:
        vit = self.vit
        runs = state.packing.runs
        if len(runs) > 1 and vit.global_pool == "token" and vit.attn_pool is None:
            # The head reads prefix tokens only: all images in one call, whatever their lengths. (With one
            # length, timm's strides are kept: for some widths the last bits of the product hang on them.)
            prefix = [run.dense(state.rows)[:, : self.arch.prefix_tokens] for run in runs]
            return vit.forward_head(vit.norm(torch.cat(prefix)))
        normed = vit.norm(state.rows)
        return torch.cat([vit.forward_head(run.dense(normed)) for run in runs])


def _heads(attn: Attention, qkv: Tensor, run: Run) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised queries and keys, and values, of one run: three of [images, H, tokens, D]."""
    split = run.dense(qkv).view(run.images, run.tokens, 3, attn.num_heads, attn.head_dim)
    q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
    return attn.q_norm(q), attn.k_norm(k), v


def _attention(attn: Attention, q: Tensor, k: Tensor, v: Tensor, exact: bool) -> Tensor:
    """Attention output [images, tokens, H * D], with timm's operations in timm's order.

    ``exact`` insists on the kernel that timm would use. Otherwise the faster one is taken: on a CPU in bf16
    that is the plain matmul-softmax-matmul form (5-12 % of the model in inference, a third in training).
    """
    plain_is_faster = q.device.type == "cpu" and q.dtype == torch.bfloat16
    if attn.fused_attn and (exact or not plain_is_faster):
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=attn.attn_drop.p if attn.training else 0.0)
    else:
        weights = ((q * attn.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        mixed = attn.attn_drop(weights) @ v
    return mixed.transpose(1, 2).flatten(2)


def _drop_path(drop_path: nn.Module, update: Tensor, packing: Packing) -> Tensor:
    return update if isinstance(drop_path, nn.Identity) else packing.map_runs(drop_path, update)


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
