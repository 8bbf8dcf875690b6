"""The forward pass of timm's vision transformers with pruning of patches.

It uses the network's own submodules. The differences between classes of networks are in families/, attention
is computed in attend/, the parts of a block are in blocks.py, and stages (blocks that prune) are in stage.py.
At keep ratio 1, it computes the same as timm, with the same kernels as at every other ratio, so the logits
equal timm's up to rounding. In `exact` mode, it uses timm's own operations, so the logits are bitwise equal;
`check_against_timm` checks that for the loaded weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.blocks import Blocks
from models.families import UnsupportedModelError, family_of
from models.head import pooled_of
from models.kept import Kept
from models.life import LifePredictor, faded, predictor_of
from models.linear.layer import replace_linears
from models.linear.plain import PlainLinear
from models.offered import check_criteria, check_reducers, offered, offered_reducers
from models.plan import End, Group
from models.pruner import Pruner
from models.ragged import Packing, Run, Tokens
from models.schedule import UNPRUNED, Criterion, Pruning, Reducer, Rows, Stages, default_stages
from models.static_blocks import check_static
from models.token_pool import pool_of


@dataclass(frozen=True, slots=True)
class Output:
    """``logits`` [B, classes]. ``kept``: the patches of each image left after each stage. ``pooled``: the
    input of the head, from which `Family.features` computes the feature vectors."""

    logits: Float[Tensor, "B classes"]
    kept: Kept
    pooled: Float[Tensor, "B pooled"]


class PrunedViT(nn.Module):
    """A vision transformer that prunes the patches of each image in its own way.

    It starts in the training or evaluation mode of the network. The linear layers of the network's blocks are
    replaced by equivalent ones that can also compute some of their outputs (models.linear.plain).

    A network with a life predictor (models.life) can also be pruned by `life`, if the first stage is the
    predictor's block. In training mode with gradients, batches that are pruned by `life` only lose no
    patches: the patches fade, and the predictor learns from it.

    In blocks with clusters of patches (models.clusters), tokens attend to the clusters. The first blocks may
    have static attention (models.static_attention). The reducer `pool` is available if all blocks that prune
    have learned queries (models.token_pool).

    Raises UnsupportedModelError for a network that it cannot prune, and ValueError for stages in blocks that
    do not exist, that attend to clusters or that have static attention.
    """

    def __init__(self, vit: nn.Module, stages: Stages | None = None) -> None:
        super().__init__()
        self.family = family_of(vit)
        self.arch = self.family.architecture
        rows: Rows = "cls" if self.family.has_cls else "all"
        self.stages = (stages or default_stages(self.arch.depth, rows)).fitting(self.arch.depth)
        if self.stages.rows == "cls" and not self.family.has_cls:
            raise UnsupportedModelError(
                "the stages read the CLS row, but it has no CLS token (use rows='all')"
            )
        if self.arch.paca is not None:
            self.arch.paca.beside(self.stages.blocks, self.arch.depth)
        check_static(self.arch.static_blocks, self.stages.blocks, self.arch.depth, self.arch.paca)
        replace_linears(self.family.blocks, PlainLinear)
        self.vit = self.family.network
        # Replaces the patch embedding if set (models.linear.packed, models.patch_product).
        self.packed_patches: nn.Module | None = None
        # Use timm's own operations instead of the fastest ones of the same precision. The logits of batches
        # without pruning are then bitwise equal to timm's.
        self.exact = False
        # If False, all blocks attend to patches, as in timm.
        self.clusters = True
        self._first_stage = self.stages.blocks[0] if self.stages.blocks else self.arch.depth
        self.train(vit.training)

    @property
    def life_predictor(self) -> LifePredictor | None:
        """The network's life predictor, if it was made for the first stage."""
        found = predictor_of(self.vit)
        return found if found is not None and self.stages.blocks[:1] == (found.block,) else None

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """The criteria that the model supports."""
        return offered(predicts_life=self.life_predictor is not None)

    @property
    def reducers(self) -> tuple[Reducer, ...]:
        """The reducers that the model supports."""
        blocks = self.family.blocks
        pools = [pool_of(blocks[index]) for index in self.stages.blocks]
        fit = all(pool is not None and pool.grid == self.arch.grid for pool in pools)
        return offered_reducers(pools=bool(pools) and fit)

    @property
    def feature_width(self) -> int:
        """The length of a feature vector (see `Family.features`)."""
        like = next(self.parameters())
        table = like.new_zeros(1, self.arch.prefix_tokens + self.arch.patches, self.arch.dim)
        with torch.inference_mode():
            return self.family.features(self.family.pooled(table, None, None)).shape[1]

    def forward(self, pixels: Float[Tensor, "B C height width"], prunings: Sequence[Pruning]) -> Output:
        """Classify normalised ``pixels``; ``prunings`` has one entry per image.

        Raises ValueError for a criterion or a reducer that the model does not support (see `criteria`,
        `reducers`).
        """
        if len(prunings) != len(pixels):
            raise ValueError(f"{len(pixels)} images, but {len(prunings)} prunings")
        return self.finish(self.begin(pixels), prunings)

    def begin(self, pixels: Float[Tensor, "B C height width"]) -> Tokens:
        """Compute the part of the forward pass that does not depend on the pruning: all blocks before the
        first stage."""
        tokens = self.embedded(pixels)
        blocks = self.blocks_for(tokens.rows)
        for index in range(self._first_stage):
            tokens = blocks.plain(index, tokens)
        return tokens

    def embedded(self, pixels: Float[Tensor, "B C height width"]) -> Tokens:
        """Embed the images: the input tokens of the first block."""
        rows, rotations = self.family.embed(pixels, None if self.exact else self.packed_patches)
        images, length, _ = rows.shape
        places = torch.arange(-self.arch.prefix_tokens, self.arch.patches, device=rows.device)
        return Tokens(
            rows,
            Packing((length,) * images),
            (self.arch.patches,) * images,
            places.repeat(images),
            rotations=rotations,
        )

    def blocks_for(self, like: Tensor) -> Blocks:
        """The blocks, set up for a forward pass of rows with the device and dtype of ``like``."""
        return Blocks.of(self.family, like, exact=self.exact, clusters=self.clusters)

    def finish(self, tokens: Tokens, prunings: Sequence[Pruning]) -> Output:
        """Compute the rest of the forward pass, from the result of `begin`."""
        check_criteria([pruning.criterion for pruning in prunings], self.criteria)
        check_reducers([pruning.reducer for pruning in prunings], self.reducers)
        blocks = self.blocks_for(tokens.rows)
        if not self.stages.blocks or not any(pruning.prunes for pruning in prunings):
            return self._finish_unpruned(blocks, tokens)
        if self.training and torch.is_grad_enabled() and all(map(_fades, prunings)):
            return self._finish_fading(blocks, tokens, prunings)
        return self.finish_by(self._pruner(tokens, prunings), tokens)

    def lives_for(self, tokens: Tokens, criteria: Sequence[Criterion]) -> Float[Tensor, "B patches"] | None:
        """The lives of all patches, from the result of `begin`. None if no criterion reads them."""
        predictor = self.life_predictor
        if predictor is None or "life" not in criteria:
            return None
        return predictor.lives(tokens.rows, self.arch.prefix_tokens)

    def _pruner(self, tokens: Tokens, prunings: Sequence[Pruning]) -> Pruner:
        lives = self.lives_for(tokens, [pruning.criterion for pruning in prunings])
        return Pruner(self.blocks_for(tokens.rows), self.stages, tokens.rows, prunings, lives)

    def finish_by(self, pruner: Pruner, tokens: Tokens) -> Output:
        """Like `finish`, with a given pruner, for batches in which something is pruned."""
        tokens = pruner.ordered(tokens)
        after_stages = []
        for index in range(self._first_stage, self.arch.depth):
            if index in self.stages.blocks:
                tokens = pruner.stage(index, tokens)
                after_stages.append(tokens)
            else:
                tokens = pruner.blocks.plain(index, tokens)
        kept = Kept.of(after_stages, self.arch.prefix_tokens, pruner.places)
        return self._output(pruner.pooled(tokens), kept)

    def _finish_unpruned(self, blocks: Blocks, tokens: Tokens) -> Output:
        for index in range(self._first_stage, self.arch.depth):
            tokens = blocks.plain(index, tokens)
        return self._output_of_all(tokens)

    def _finish_fading(self, blocks: Blocks, tokens: Tokens, prunings: Sequence[Pruning]) -> Output:
        """Train by `life`: compute all patches to the end, but let them fade from attention and averages.
        Reducers are not used."""
        predictor, prefix = self.life_predictor, self.arch.prefix_tokens
        assert predictor is not None
        counts = [self.stages.keep_counts(self.arch.patches, pruning.keep_ratio) for pruning in prunings]
        weights = dict(zip(self.stages.blocks, faded(predictor(tokens.rows, prefix), counts), strict=True))
        for index in range(self._first_stage, self.arch.depth):
            tokens = blocks.plain(index, tokens)
            if index in weights:
                # Prefix tokens have no life and keep their full weight.
                bias = F.pad(weights[index], (prefix, 0)).flatten()
                tokens = replace(tokens, sizes=bias.exp(), bias=bias.to(tokens.rows.dtype))
        return self._output_of_all(tokens)

    def _output_of_all(self, tokens: Tokens) -> Output:
        """The output for tokens from which nothing has been removed."""
        images, length = len(tokens.patches), tokens.packing.longest
        end = End((Group(Run(0, images, 0, length), self.arch.patches),))
        after_stages = [tokens] * len(self.stages.blocks)
        kept = Kept.of(after_stages, self.arch.prefix_tokens, range(images))
        return self._output(pooled_of(self.family, tokens, end, ()), kept)

    def _output(self, pooled: Float[Tensor, "B pooled"], kept: Kept) -> Output:
        return Output(self.family.logits(pooled), kept, pooled)

    @torch.no_grad()
    def first_importance(self, tokens: Tokens, prunings: Sequence[Pruning]) -> Float[Tensor, "B patches"]:
        """The importance of each patch at the first stage, by the criterion of each image's pruning.

        ``tokens``: the result of `begin`. Raises ValueError for a model without stages, and for a criterion
        that the model does not support.
        """
        if not self.stages.blocks:
            raise ValueError("a model without stages computes no importance of patches")
        check_criteria([pruning.criterion for pruning in prunings], self.criteria)
        pruner = self._pruner(tokens, prunings)
        return pruner.as_asked(pruner.first_look(pruner.ordered(tokens)).values)


def _fades(pruning: Pruning) -> bool:
    return pruning.criterion == "life" and pruning.keep_mass is None and pruning.reducer != "pool"


@torch.inference_mode()
def check_against_timm(model: PrunedViT, pixels: Float[Tensor, "B C height width"]) -> None:
    """Raise UnsupportedModelError unless the logits for ``pixels`` at keep ratio 1 are bitwise equal to
    timm's.

    Both are computed by timm's operations. timm does not support clusters of patches, so they are not used in
    the comparison.
    """
    was_training, was_exact, had_clusters = model.training, model.exact, model.clusters
    model.eval()
    model.exact, model.clusters = True, False
    ours = model(pixels, [UNPRUNED] * len(pixels)).logits
    timms = model.vit(pixels)
    model.train(was_training)
    model.exact, model.clusters = was_exact, had_clusters
    if not torch.equal(ours, timms):
        difference = (ours.float() - timms.float()).abs().max().item()
        raise UnsupportedModelError(
            f"at keep ratio 1 its logits differ from timm's own by up to {difference:g}, "
            "so TrimViT does not support some part of its forward pass"
        )
