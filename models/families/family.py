"""The protocol of the supported classes of networks."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.attend.heads import Attention, Parts
from models.ragged import Rotations
from models.schedule import Architecture

# The supported networks.
Network: TypeAlias = VisionTransformer | Eva
# Which projections of an attention module to compute.
Wanted = Literal["qkv", "q", "kv"]


@runtime_checkable
class Family(Protocol):
    """Wraps a network of one class, and provides the parts that a pruned forward pass needs.

    The blocks of all classes have norm1, attn, drop_path1, norm2, mlp and drop_path2, and their attn has
    q_norm, k_norm, norm, gate, proj and proj_drop, as in timm. They are called in timm's order, so that in
    `exact` mode the logits at keep ratio 1 are bitwise equal to timm's.
    """

    @property
    def network(self) -> Network:
        """The network itself."""

    @property
    def architecture(self) -> Architecture:
        """The dimensions that determine token counts and MACs."""

    @property
    def has_cls(self) -> bool:
        """Whether token 0 is a CLS token, which is not rotated."""

    @property
    def blocks(self) -> Any:
        """The network's list of blocks. Do not cache their layers, which may be replaced at any time."""

    @property
    def pools_patches(self) -> bool:
        """Whether the head reads patches, rather than only prefix tokens."""

    def embed(
        self, pixels: Float[Tensor, "B C height width"], patches: nn.Module | None
    ) -> tuple[Float[Tensor, "B tokens dim"], Rotations | None]:
        """Compute the input tokens of the first block, and their rotary embeddings, if positions are rotary.
        ``patches``: a module that replaces the patch embedding."""

    def project(self, attn: Attention, normed: Tensor, wanted: Wanted) -> Parts:
        """Compute queries, keys and values of the ``normed`` rows [*rows, dim], or some of them, before their
        norms and rotary embeddings."""

    def parts_asked(self, attn: Attention) -> Mapping[str, Sequence[slice]]:
        """The ranges of outputs that `project` computes separately if ``wanted`` is not "qkv", by the name of
        the linear layer within ``attn``."""

    def scales(self, block: Any) -> tuple[Float[Tensor, " dim"] | None, Float[Tensor, " dim"] | None]:
        """The factors of the updates of attention and MLP (LayerScale); None without LayerScale."""

    def norm(self, rows: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Apply the norm after the last block."""

    def pooled(
        self, table: Float[Tensor, "B tokens dim"], gaps: Tensor | None, sizes: Tensor | None
    ) -> Float[Tensor, "B pooled"]:
        """Pool the tokens of each image, and return the input of the head (after fc_norm).

        ``table``: the tokens after `norm`; only prefix tokens are needed if ``pools_patches`` is False.
        ``gaps`` [B, tokens]: True for places without a token. ``sizes`` [B, tokens]: the number of patches
        that each token represents.
        """

    def logits(self, pooled: Float[Tensor, "B pooled"]) -> Float[Tensor, "B classes"]:
        """Apply the head; without one, return ``pooled``."""

    def features(self, pooled: Float[Tensor, "B pooled"]) -> Float[Tensor, "B features"]:
        """The feature vector of each image, as timm's forward_head(pre_logits=True) returns it."""
