"""timm's transformer blocks over the tokens of a packed batch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.attend import Attention, Parts, Runs, Way, way_for
from models.attend.varlen import Varlen
from models.clusters import Clustering, clustering_of
from models.families import Family
from models.families.family import Wanted
from models.linear.int8 import projection_of_norm, with_mlp, with_projection
from models.linear.mlp import mlp
from models.ragged import Packing, Tokens
from models.static_attention import static_of


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of a network, set up for one forward pass.

    ``modules``: timm's blocks. ``way``: how attention is computed. ``exact``: whether to use timm's own
    operations (see `PrunedViT.exact`). ``clusters``: whether blocks that have clusters of patches attend to
    them (see `PrunedViT.clusters`).
    """

    family: Family
    modules: tuple[Any, ...]
    way: Way
    exact: bool
    clusters: bool = True

    @staticmethod
    def of(family: Family, rows: Tensor, *, exact: bool, clusters: bool = True) -> "Blocks":
        """Choose the fastest implementation for the device and dtype of ``rows``, or timm's if ``exact``."""
        modules = tuple(family.blocks)
        attn = modules[-1].attn  # the first ones may have static attention
        way = Runs(attn.fused_attn) if exact else way_for(attn, rows, family.architecture.tokens)
        return Blocks(family, modules, way, exact, clusters)

    def plain(self, index: int, tokens: Tokens) -> Tokens:
        """Compute block ``index`` without pruning."""
        clustering, static = self._clustering(index), static_of(self.modules[index])
        if not (self.exact or clustering or static):
            projected = projection_of_norm(self.modules[index], tokens.rows)
            if projected is not None:
                return self.mlp(index, self.attended(index, tokens, None, (projected,), tokens))
        normed = self.normed(index, tokens)
        if static is not None:
            return self.mlp(index, self._with_attention(index, tokens, static(normed)))
        if clustering is None:
            source, parts = tokens, self.project(index, normed, "qkv")
        else:
            prefix = self.family.architecture.prefix_tokens
            source = clustering.source(tokens, normed, prefix, in_one=isinstance(self.way, Varlen))
            parts = (*self.project(index, normed, "q"), *self.project(index, source.rows, "kv"))
        return self.mlp(index, self.attended(index, tokens, normed, parts, source))

    def _clustering(self, index: int) -> Clustering | None:
        return clustering_of(self.modules[index]) if self.clusters else None

    def attn(self, index: int) -> Attention:
        """The attention module of a block."""
        attn: Attention = self.modules[index].attn
        return attn

    def normed(self, index: int, tokens: Tokens) -> Tensor:
        """The rows after ``norm1``: the input of the attention and of its gate."""
        normed: Tensor = self.modules[index].norm1(tokens.rows)
        return normed

    def project(self, index: int, normed: Tensor, wanted: Wanted) -> Parts:
        """Compute the queries, keys and values of ``normed`` rows, or some of them."""
        return self.family.project(self.modules[index].attn, normed, wanted)

    def attended(
        self, index: int, tokens: Tokens, normed: Tensor | None, parts: Parts, source: Tokens
    ) -> Tokens:
        """Add the output of the block's attention to ``tokens``.

        ``parts``: the queries of ``tokens``, and the keys and values of ``source``. ``normed``: the rows of
        ``tokens`` after ``norm1``, which only a gate needs.
        """
        attn = self.modules[index].attn
        mixed = attn.norm(self.way.attend(attn, parts, tokens, source, index))
        if attn.gate is not None:
            mixed = mixed * attn.gate(normed).sigmoid()
        block = self.modules[index]
        fused = (
            None if self.exact else with_projection(block, mixed, tokens.rows, self.family.scales(block)[0])
        )
        if fused is not None:
            return tokens.with_rows(fused)
        return self._with_attention(index, tokens, attn.proj_drop(attn.proj(mixed)))

    def _with_attention(self, index: int, tokens: Tokens, update: Tensor) -> Tokens:
        """Add the update of the block's attention to ``tokens``."""
        block = self.modules[index]
        return self._add(tokens, update, self.family.scales(block)[0], block.drop_path1)

    def mlp(self, index: int, tokens: Tokens) -> Tokens:
        """Add the update of the block's MLP to ``tokens``."""
        block = self.modules[index]
        fused = None if self.exact else with_mlp(block, tokens.rows, self.family.scales(block)[1])
        if fused is not None:
            return tokens.with_rows(fused)
        normed = block.norm2(tokens.rows)
        update = block.mlp(normed) if self.exact else mlp(block.mlp, normed)
        return self._add(tokens, update, self.family.scales(block)[1], block.drop_path2)

    def _add(self, tokens: Tokens, update: Tensor, scale: Tensor | None, drop_path: nn.Module) -> Tokens:
        """Add ``update`` to the rows, scaled (LayerScale) and, in training, dropped at random (DropPath)."""
        if scale is not None:
            if not (self.exact or drop_path.training or torch.is_grad_enabled()):
                # A single operation rounds only once.
                return tokens.with_rows(torch.addcmul(tokens.rows, update, scale))
            update = update * scale
        return tokens.with_rows(tokens.rows + _dropped(drop_path, update, tokens.packing))


def _dropped(drop_path: nn.Module, update: Tensor, packing: Packing) -> Tensor:
    return update if isinstance(drop_path, nn.Identity) else packing.map_runs(drop_path, update)
