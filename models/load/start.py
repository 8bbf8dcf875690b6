"""Create the network to start fine-tuning from: from the hub, or from weights of the same architecture."""

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
    """Weights of modules that a checkpoint has in addition to timm's network.

    ``life``: weights of the life predictor, which was made for ``life_block``. ``clusters``: weights of the
    clustering modules. ``pools``: weights of the token pooling, for a ``pool_grid`` of patches. Both keep
    their names in the checkpoint. ``static``: logits of the blocks with static attention, for a
    ``static_grid`` of patches; queries and keys of these blocks are zero in the network.
    """

    life: dict[str, Tensor] = field(default_factory=dict)
    life_block: int | None = None
    clusters: dict[str, Tensor] = field(default_factory=dict)
    pools: dict[str, Tensor] = field(default_factory=dict)
    pool_grid: tuple[int, int] | None = None
    static: tuple[Tensor, ...] = ()
    static_grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Start:
    """A network to fine-tune.

    ``model_args``: the arguments that a card needs to build it again, except for classes and image size.
    ``input``: the preprocessing, at the network's image size. ``added``: weights of additional modules in the
    checkpoint; the network does not have these modules yet. ``stages``: the stages in the checkpoint's card;
    None without a card.
    """

    vit: Network
    model_args: dict[str, Any]
    input: InputSpec
    added: Added
    stages: Stages | None = None


def create(
    architecture: str, weights: Path | None, *, patch_stride: int | None = None, **model_args: Any
) -> Start:
    """Create a timm model to fine-tune, from the hub or from weights of the same architecture.

    The position embedding is resampled to the grid for the image size and ``patch_stride`` (None: patches do
    not overlap, regardless of how the weights were trained). A head of another size keeps its random
    initialization. Raises ModelError if weights other than the head's are missing or left over, and
    UnsupportedModelError or ValueError if the patch stride is not possible or the image cannot be divided
    into patches.
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
        # Load at the original image size, so that the position embedding is resampled only once.
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
    """Return the file. Raises ModelError if it is a transformers checkpoint."""
    if transformers_config_in(file.parent) is not None and not holds_network(read_file(file)):
        raise ModelError(
            f"{file} is a transformers checkpoint, which can be served but not fine-tuned here; start "
            "from the timm weights of the network (--architecture), or train it with transformers"
        )
    return file


def _start(
    architecture: str, file: Path, patch_stride: int | None
) -> tuple[Fit, Added, InputSpec | None, Stages | None]:
    """Read the weights to start from. Their number of classes is ignored, and ambiguous pooling is not an
    error. Also returns the additional modules, the preprocessing and the stages from the checkpoint's card;
    without a card, the last two are None (timm's preprocessing, default stages)."""
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
    """Convert the weights of static attention to timm's attention. Returns all weights and the logits of each
    static block. Raises ModelError if the weights do not fit the card."""
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
    """Return the tensors whose names start with ``before``, with that prefix removed."""
    return {name.removeprefix(before): each for name, each in tensors.items() if name.startswith(before)}


def _grid(card: Card) -> tuple[int, int]:
    vit = create_timm(card.architecture, pretrained=False, patch_stride=None, **dict(card.model_args))
    kernel = vit.patch_embed.proj.kernel_size
    stride = (card.patch_stride, card.patch_stride) if card.patch_stride else kernel
    return patch_grid(card.input.size, kernel, stride)
