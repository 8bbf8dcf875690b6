"""The differences between network classes, and what they have in common."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.attend.heads import Attention, Parts
from models.ragged import Rotations
from models.schedule import Architecture

# A network that some family knows.
Network: TypeAlias = VisionTransformer | Eva
# What is asked of an attention's projections.
Wanted = Literal["qkv", "q", "kv"]


@runtime_checkable
class Family(Protocol):
    """A network of one class: its parts as a pruned forward pass needs them.

    Blocks of all classes have norm1, attn, drop_path1, norm2, mlp and drop_path2 under these names, and their
    attn has q_norm, k_norm, norm, gate, proj and proj_drop, as timm's do. They are called in timm's order, so
    that the exact logits at keep ratio 1 are timm's to the last bit.
    """

    @property
    def network(self) -> Network:
        """It itself."""

    @property
    def architecture(self) -> Architecture:
        """The numbers that counts and MACs follow from."""

    @property
    def has_cls(self) -> bool:
        """Whether token 0 is a CLS token, which is not rotated."""

    @property
    def blocks(self) -> Any:
        """The network's own list of them, as they are now: layers may be replaced at any time."""

    @property
    def pools_patches(self) -> bool:
        """Whether the head reads patches, and not only prefix tokens."""

    def embed(
        self, pixels: Float[Tensor, "B C height width"], patches: nn.Module | None
    ) -> tuple[Float[Tensor, "B tokens dim"], Rotations | None]:
        """The tokens that come to the first block; and how they are rotated, where positions are rotary.
        ``patches`` takes the place of the patch embedding."""

    def project(self, attn: Attention, normed: Tensor, wanted: Wanted) -> Parts:
        """Queries, keys and values of the ``normed`` rows [*rows, dim], or some of them, as layers give them:
        neither normed nor rotated."""

    def parts_asked(self, attn: Attention) -> Mapping[str, Sequence[slice]]:
        """The parts of the outputs of its linear layers, by the layer's name within ``attn``, that `project`
        asks for where it is asked for some only."""

    def scales(self, block: Any) -> tuple[Float[Tensor, " dim"] | None, Float[Tensor, " dim"] | None]:
        """By which the updates of attention and MLP are multiplied (LayerScale), if they are."""

    def norm(self, rows: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """The norm behind the last block."""

    def pooled(
        self, table: Float[Tensor, "B tokens dim"], gaps: Tensor | None, sizes: Tensor | None
    ) -> Float[Tensor, "B pooled"]:
        """What the head reads (behind fc_norm), from the tokens of images side by side, normed; prefix tokens
        are enough if no patches are pooled. ``gaps`` [B, tokens]: if nothing is; ``sizes`` [B, tokens]:
        how many patches each stands for."""

    def logits(self, pooled: Float[Tensor, "B pooled"]) -> Float[Tensor, "B classes"]:
        """The head; without one, ``pooled`` itself."""

    def features(self, pooled: Float[Tensor, "B pooled"]) -> Float[Tensor, "B features"]:
        """The image's feature vector: what timm's forward_head(pre_logits=True) gives."""
