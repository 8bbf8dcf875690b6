"""Add static attention (models.static_attention) to a network for training. It starts as the mean attention
over training images."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from models.attend.heads import heads, placed
from models.blocks import Blocks
from models.clusters import paca_of
from models.load import ModelError, Start
from models.normalise import normalise
from models.pruned_vit import PrunedViT
from models.ragged import Tokens
from models.schedule import Stages
from models.static_attention import make_static, static_of
from models.static_blocks import check_static
from models.training.data import Sample, spread_samples
from models.training.loading import BrokenImages, evaluation_batches

# Number of training images for the mean attention. They are spread over the classes and preprocessed as in
# serving.
IMAGES = 256
_BATCH = 16


def give_static(start: Start, count: int, stages: Stages) -> range:
    """Add static attention to those of the first ``count`` blocks for which the checkpoint has it. Returns
    the range of the other blocks, which still need `inherit`.

    Raises ValueError for blocks that cannot have static attention, and ModelError if the checkpoint has it in
    more blocks or for another patch grid.
    """
    vit, own = start.vit, start.added.static
    if count < len(own):
        where = "block 1" if len(own) == 1 else f"blocks 1 to {len(own)}"
        raise ModelError(
            f"the weights have static attention in {where}, without queries and keys; add --static-blocks "
            f"{len(own)} or more, or start from other weights"
        )
    check_static(count, stages.blocks, len(vit.blocks), paca_of(tuple(vit.blocks)))
    grid = tuple(vit.patch_embed.grid_size)
    if own and start.added.static_grid != grid:
        assert start.added.static_grid is not None
        raise ModelError(
            "the static attention of the weights is for {} x {} patches, but this image size and patch "
            "stride give {} x {}; use those of the weights, or start from other weights".format(
                *start.added.static_grid, *grid
            )
        )
    make_static(vit, len(own))
    for block, logits in zip(vit.blocks, own, strict=False):
        static = static_of(block)
        assert static is not None
        assert static.logits is not None
        with torch.no_grad():
            static.logits.copy_(logits)
    return range(len(own), count)


def inherit(
    start: Start, blocks: range, samples: Sequence[Sample], broken: BrokenImages, workers: int
) -> None:
    """Make the attention of ``blocks`` static, starting with its mean over some of the training images.
    Computed on the network's device. Raises BrokenImageError."""
    if not blocks:
        return
    vit = start.vit
    spec, device = start.input, next(vit.parameters()).device
    some = spread_samples(samples, IMAGES)
    batches = evaluation_batches(some, spec, broken, batch_size=_BATCH, workers=workers)
    pixels = (torch.from_numpy(batch.pixels).to(device) for batch in batches if len(batch.numbers))
    inputs = (normalise(each, spec, torch.float32) for each in pixels)
    means = mean_attention(PrunedViT(vit, Stages((), "all")), inputs, blocks)
    if not means:
        broken.tell(of=len(some))
    make_static(vit, blocks.stop)
    for block, mean in zip(blocks, means, strict=True):
        static = static_of(vit.blocks[block])
        assert static is not None
        static.inherit(mean)


@torch.no_grad()
def mean_attention(
    model: PrunedViT, inputs: Iterable[Float[Tensor, "_images C height width"]], blocks: range
) -> list[Float[Tensor, "H T T"]]:
    """Compute the mean attention weights over images for each of the ``blocks``, which must not be static
    yet. Returns an empty list if there are no images."""
    was_training = model.training
    model.eval()
    sums: dict[int, Tensor] = {}
    images = 0
    for pixels in inputs:
        tokens = model.embedded(pixels)
        computed = model.blocks_for(tokens.rows)
        for block in range(blocks.stop):
            if block in blocks:
                weights = _attention(computed, block, tokens).double().sum(dim=0)
                sums[block] = sums.get(block, 0) + weights
            tokens = computed.plain(block, tokens)
        images += len(pixels)
    model.train(was_training)
    return [sums[block].div(images).float() for block in blocks if images]


def _attention(blocks: Blocks, block: int, tokens: Tokens) -> Float[Tensor, "B H T T"]:
    """Compute the attention weights of a block for images that still have all tokens."""
    attn, images = blocks.attn(block), len(tokens.patches)
    parts = blocks.project(block, blocks.normed(block, tokens), "qkv")
    q, k, _ = (one for rows in parts for one in heads(attn, rows))
    rotation = tokens.rotation(block)
    if rotation is not None:
        rotation = rotation.unflatten(0, (images, -1)).transpose(1, 2)
    q, k = placed(attn, attn.q_norm, q, rotation), placed(attn, attn.k_norm, k, rotation)
    return (attn.scale * q.float() @ k.float().mT).softmax(dim=-1)
