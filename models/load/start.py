"""A network to fine-tune: from the hub, or from weights of the same architecture."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from models.clusters import is_of_clusters
from models.families import Network
from models.life import NAME as LIFE
from models.load.beside import known_of
from models.load.card import Card, read_card
from models.load.errors import ModelError
from models.load.files import read_file
from models.load.fit import Fit, fit
from models.load.folder import file_at
from models.load.input_spec import at_size, input_spec_of
from models.load.numbers import refuse_non_finite
from models.load.reference import existing
from models.load.state_dict import find_weights, holds_network
from models.load.timm_models import blank, create_timm
from models.load.transformers_format.config import config_in as transformers_config_in
from models.patch_embed import check_image_size, patch_grid
from models.schedule import Stages
from models.static_attention import as_timms
from models.token_pool import is_of_pool
from models.transforms import InputSpec


@dataclass(frozen=True)
class Added:
    """Weights of the modules that a checkpoint has in addition to timm's network. ``life``: of its life
    predictor, which was made for ``life_block``; ``clusters``: of its clusterings, ``pools``: of what pools
    its tokens, for ``pool_grid`` of patches, both by their names in the checkpoint; ``static``: the logits of
    its blocks with static attention, for ``static_grid`` of patches. Queries and keys of these blocks are
    zeros in the network."""

    life: dict[str, Tensor] = field(default_factory=dict)
    life_block: int | None = None
    clusters: dict[str, Tensor] = field(default_factory=dict)
    pools: dict[str, Tensor] = field(default_factory=dict)
    pool_grid: tuple[int, int] | None = None
    static: tuple[Tensor, ...] = ()
    static_grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Start:
    """A network to fine-tune, and what a card must say to build it again beside classes and image size.
    ``input``: what it sees of a photograph, at its own image size. ``added``: of the checkpoint that it
    starts from; the network does not have these modules yet. ``stages``: of that checkpoint, if it was
    trained with any."""

    vit: Network
    model_args: dict[str, Any]
    input: InputSpec
    added: Added
    stages: Stages | None = None


def create(
    architecture: str, weights: Path | None, *, patch_stride: int | None = None, **model_args: Any
) -> Start:
    """A timm model to fine-tune: from the hub, or from weights of the same architecture.

    The position embedding is resampled to the grid of the image size and of ``patch_stride`` (None: the
    plain grid, whatever the weights were trained with); a head of another size is left as initialised.
    Raises ModelError if weights other than the head's are missing or left over, UnsupportedModelError and
    ValueError where the patch stride cannot be, or the image cannot be cut into patches.
    """
    file = None if weights is None else _not_of_transformers(file_at(existing(str(weights))))
    if "img_size" in model_args:
        plain = blank(architecture, img_size=model_args["img_size"]).patch_embed
        patch = tuple(plain.patch_size)
        stride = patch if patch_stride is None else (patch_stride, patch_stride)
        check_image_size(tuple(plain.img_size), patch, stride)
    if file is None and patch_stride is None:
        vit = create_timm(architecture, pretrained=True, **model_args)
        return Start(vit, {}, input_spec_of(vit), Added())
    if file is None:
        create_timm(architecture, pretrained=False, patch_stride=patch_stride, **model_args)
        # At the hub's own image size, so that its position embedding is resampled once and not twice.
        at_own_size = {name: value for name, value in model_args.items() if name != "img_size"}
        own = create_timm(architecture, pretrained=True, **at_own_size)
        started = Fit(
            architecture,
            {},
            None,
            own.state_dict(),
            tuple(own.patch_embed.grid_size),
            tuple(own.patch_embed.img_size),
            tuple(own.patch_embed.img_size),
            architecture,
        )
        added, seen, stages = Added(), None, None
    else:
        started, added, seen, stages = _start(architecture, file, patch_stride)
    size = model_args.pop("img_size", started.usual)
    vit = started.build(patch_stride=patch_stride, head_may_differ=True, img_size=size, **model_args)
    refuse_non_finite(vit, started.source)
    return Start(
        vit,
        {
            name: value
            for name, value in started.model_args.items()
            if name not in ("num_classes", "img_size")
        },
        input_spec_of(vit) if seen is None else at_size(seen, tuple(vit.patch_embed.img_size)),
        added,
        stages,
    )


def _not_of_transformers(file: Path) -> Path:
    """The file of weights, unless transformers saved them. Raises ModelError."""
    if transformers_config_in(file.parent) is not None and not holds_network(read_file(file)):
        raise ModelError(
            f"{file} is a transformers checkpoint, which can be served but not fine-tuned here; start "
            "from the timm weights of the network (--architecture), or train it with transformers"
        )
    return file


def _start(
    architecture: str, file: Path, patch_stride: int | None
) -> tuple[Fit, Added, InputSpec | None, Stages | None]:
    """Weights to start from: their head does not matter, and how they pool only if it is certain. With
    them, what a checkpoint with a card sees, and its stages; None if timm's own preprocessing holds, and
    the default stages."""
    card = read_card(file)
    found = find_weights(read_file(file), file)
    if card is not None:
        size = card.input.size
        grid = _grid(card)
        args = {name: value for name, value in card.model_args.items() if name != "num_classes"}
        before = f"{LIFE}."
        clusters = {
            name: each
            for name, each in found.tensors.items()
            if card.paca is not None and is_of_clusters(name)
        }
        pools = {
            name: each
            for name, each in found.tensors.items()
            if card.pool_blocks is not None and is_of_pool(name)
        }
        of_network = {
            name: each
            for name, each in found.tensors.items()
            if not name.startswith(before) and name not in clusters and name not in pools
        }
        life = {} if card.life_block is None else within(before, found.tensors)
        of_network, static = _dynamic(card, of_network, file.name)
        fitted = fit(
            architecture,
            of_network,
            file.name,
            model_args={**args, "img_size": size},
            grid=grid,
            pooling_matters=False,
        )
        added = Added(
            life=life,
            life_block=card.life_block,
            clusters=clusters,
            pools=pools,
            pool_grid=grid if pools else None,
            static=static,
            static_grid=grid if static else None,
        )
        return fitted, added, card.input, card.stages
    known = known_of(file, found, architecture)
    args = {name: value for name, value in known.model_args.items() if name != "num_classes"}
    fitted = fit(
        architecture,
        found.tensors,
        file.name,
        model_args=args,
        pretrained_cfg=known.pretrained_cfg,
        patch_stride=patch_stride,
        pooling_matters=False,
    )
    return fitted, Added(), None, None


def _dynamic(
    card: Card, tensors: dict[str, Tensor], source: str
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """The weights with timm's attention in every block, and the logits of those that are static. Raises
    ModelError for weights that do not fit the card."""
    if card.static_blocks == 0:
        return tensors, ()
    expected = blank(card.architecture, **card.model_args).state_dict()
    static = []
    for block in range(card.static_blocks):
        before = f"blocks.{block}.attn."
        own, timms = (within(before, each) for each in (tensors, expected))
        try:
            weights, logits = as_timms(own, timms)
        except (KeyError, IndexError, RuntimeError) as error:
            raise ModelError(
                f"{source}: the static attention of block {block + 1} does not fit the architecture: {error}"
            ) from error
        others = {name: each for name, each in tensors.items() if not name.startswith(before)}
        tensors = {**others, **{before + name: each for name, each in weights.items()}}
        static.append(logits)
    return tensors, tuple(static)


def within(before: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``before``, by the rest of their names."""
    return {name.removeprefix(before): each for name, each in tensors.items() if name.startswith(before)}


def _grid(card: Card) -> tuple[int, int]:
    vit = create_timm(card.architecture, pretrained=False, patch_stride=None, **dict(card.model_args))
    kernel = vit.patch_embed.proj.kernel_size
    stride = (card.patch_stride, card.patch_stride) if card.patch_stride else kernel
    return patch_grid(card.input.size, kernel, stride)
