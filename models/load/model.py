"""Load a model by reference: a validated PrunedViT with its labels and input spec."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from timm.data import ImageNetInfo, infer_imagenet_subset

from models.cascade import Cascade
from models.families import Network
from models.load.card import Card
from models.load.errors import ModelError
from models.load.hub import offline_unless_the_hub_answers
from models.load.input_spec import at_size, input_spec_of
from models.load.labels import of_collection
from models.load.numbers import refuse_non_finite
from models.load.own_head import Head, read_head
from models.load.reference import located
from models.load.saved_network import SavedNetwork, by_name, from_path
from models.load.timm_models import FEATURES_ONLY, is_projection, project_features
from models.offered import check_criteria, check_reducers
from models.patch_embed import set_image_size
from models.pruned_vit import PrunedViT
from models.schedule import Criterion, Method, Reducer, Rows, Stages
from models.scores import Scores
from models.stage_blocks import Blocks, stages_of
from models.token_pool import pooling_blocks
from models.transforms import InputSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model in float32 on the CPU, in evaluation mode, and its card. The card comes from the checkpoint or
    is built from timm's description. If the stages of model and card differ, the model's apply."""

    name: str
    model: PrunedViT
    card: Card

    def __post_init__(self) -> None:
        """Raise ValueError if the stages or the patch grid do not fit the default criterion or reducer, which
        may need a life predictor or learned queries for them."""
        if self.card.criterion not in self.model.criteria:
            block = self.card.life_block
            made = "it has no life predictor"
            if block is not None:
                made = f"its life predictor is for block {block + 1}"
            raise ValueError(
                f"the default criterion of {self.name} is {self.card.criterion}, but {made}; it must have "
                "one "
                "for the first block that prunes (--stages)"
            )
        if self.card.reducer not in self.model.reducers:
            pools = pooling_blocks(tuple(self.model.family.blocks))
            made = "it has no learned queries"
            if pools:
                rows, columns = self.model.family.blocks[pools[0]].token_pool.grid
                where = ", ".join(str(block + 1) for block in pools)
                made = f"its learned queries are for block {where} and {rows} x {columns} patches"
            raise ValueError(
                f"the default reducer of {self.name} is {self.card.reducer}, but {made}; every block that "
                "prunes (--stages) must have them, for the patches of this input size"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in class order."""
        return self.card.labels

    @property
    def input(self) -> InputSpec:
        """The input preprocessing."""
        return self.card.input

    @property
    def method(self) -> Method:
        """The default pruning method."""
        return Method(self.model.stages, self.card.criterion, self.card.reducer)

    @property
    def scores(self) -> Scores:
        """How logits become scores."""
        return self.card.scores

    def check_criteria(self, wanted: Sequence[Criterion]) -> "LoadedModel":
        """Return this model. Raises ValueError if it does not support one of the criteria."""
        check_criteria(wanted, self.model.criteria)
        return self

    def check_reducers(self, wanted: Sequence[Reducer]) -> "LoadedModel":
        """Return this model. Raises ValueError if it does not support one of the reducers."""
        check_reducers(wanted, self.model.reducers)
        return self

    def at_stages(self, blocks: Blocks | None, rows: Rows | None = None) -> "LoadedModel":
        """Return the same model, pruned in other blocks or with other rows (see `stage_blocks.stages_of`).
        Raises ValueError for blocks that it does not have, and UnsupportedModelError for unsupported rows."""
        own = self.model.stages
        stages = stages_of(blocks, rows, own, self.model.arch.depth)
        return self if stages == own else replace(self, model=PrunedViT(self.model.vit, stages))

    @property
    def cascade(self) -> Cascade | None:
        """The fitted cascade; None if the stages differ from those it was fitted for."""
        return self.card.cascade if self.model.stages == self.card.stages else None


def load(
    reference: str,
    *,
    architecture: str | None = None,
    labels: tuple[str, ...] | None = None,
    stages: Stages | None = None,
    patch_stride: int | None = None,
    input_size: tuple[int, int] | None = None,
    headless: bool = False,
    head: Path | None = None,
) -> LoadedModel:
    """Load a model by reference.

    ``reference`` is the bundled model's name, a timm name (weights from the hub or its local cache),
    ``owner/name`` on the hub, or the path of a file or folder. The format (timm or transformers) of a
    repository or folder is detected.

    ``architecture`` is the timm name for weights that do not contain it. ``labels``, ``stages``,
    ``patch_stride`` and ``input_size`` (height, width in pixels) override those of the checkpoint. Another
    stride or size works with the same weights: the position embedding is resampled to the new grid.
    ``headless`` allows a network without classes, for its features; these include the projection of a CLIP
    tower. ``head`` is a file with a custom head, which replaces the network's.

    Raises ModelError if there is no such model, or if its weights are not available or do not fit. Raises
    UnsupportedModelError if it cannot be pruned or does not support a stride, and ValueError for stages, a
    stride or a size that do not fit.
    """
    place = located(reference)
    if isinstance(place, Path):
        network = from_path(place, architecture, patch_stride)
    else:
        with offline_unless_the_hub_answers():
            network = by_name(place, architecture, patch_stride)
    own_head = None if head is None else read_head(head)
    return _loaded(network, labels, stages, patch_stride, input_size, own_head, headless=headless)


def _loaded(
    network: SavedNetwork,
    labels: tuple[str, ...] | None,
    stages: Stages | None,
    patch_stride: int | None,
    input_size: tuple[int, int] | None,
    head: Head | None,
    *,
    headless: bool,
) -> LoadedModel:
    vit, name, card = network.vit, network.name, network.card
    if vit.num_classes == 0 and not headless and head is None:
        raise ModelError(f"{name} {FEATURES_ONLY.format(why='it has no head')}")
    named = labels or network.labels or (card.labels if card else None)
    if _is_projection(network, named, head):
        _make_features(network, allowed=headless or head is not None)
        named = None
    if input_size is not None:
        set_image_size(vit, input_size)
    if head is not None:
        head.put_on(vit, PrunedViT(vit, Stages((), "all")).feature_width)
        named = labels or head.labels or tuple(f"class {index}" for index in range(vit.num_classes))
    refuse_non_finite(vit, name)
    model = PrunedViT(vit.eval(), stages or (card.stages if card else None))
    if card is None:
        card = _card_of(network, model, named, head)
    elif head is not None:  # the cascade was fitted for another head
        assert named is not None
        card = replace(card, labels=named, scores=head.scores, cascade=None, folders=None)
    card = _as_asked(card, labels, patch_stride, input_size)
    if len(card.labels) != vit.num_classes:
        raise ModelError(
            f"{len(card.labels)} labels, but {name} has {vit.num_classes or 'no'} classes; "
            "give one label per class, in class order"
        )
    return LoadedModel(name, model, card)


def _is_sure(network: SavedNetwork) -> bool:
    """Whether the weights are known to be timm's own, because the architecture has a weight tag."""
    return "." in network.architecture


def _is_projection(network: SavedNetwork, named: tuple[str, ...] | None, head: Head | None) -> bool:
    """Whether the head is actually the projection of a CLIP tower."""
    if network.card is not None or not (_is_sure(network) or not named or head is not None):
        return False
    return network.vit.num_classes > 0 and is_projection(network.architecture, network.vit.num_classes)


def _make_features(network: SavedNetwork, *, allowed: bool) -> None:
    """Make the projection part of the features. Raises ModelError unless ``allowed``."""
    why = f"its head with {network.vit.num_classes} outputs is a projection of CLIP"
    hint = "" if _is_sure(network) else " (if the outputs are classes, name them with --labels)"
    if not allowed:
        raise ModelError(f"{network.name} {FEATURES_ONLY.format(why=why)}{hint}")
    log.info("%s: %s and becomes part of the features%s", network.name, why, hint)
    project_features(network.vit)


def _card_of(
    network: SavedNetwork, model: PrunedViT, named: tuple[str, ...] | None, head: Head | None
) -> Card:
    """Build a card for a network that was saved without one."""
    vit = network.vit
    return Card(
        architecture=vit.pretrained_cfg["architecture"],
        labels=(named or _labels_of(vit, network.name)) if vit.num_classes else (),
        input=at_size(network.input or input_spec_of(vit), tuple(vit.patch_embed.img_size)),
        stages=model.stages,
        scores=network.scores if head is None else head.scores,
        model_args={
            **(network.model_args or {}),
            "num_classes": vit.num_classes,
            "img_size": vit.patch_embed.img_size,
        },
    )


def _as_asked(
    card: Card,
    labels: tuple[str, ...] | None,
    patch_stride: int | None,
    input_size: tuple[int, int] | None,
) -> Card:
    """Return the card with the given values in place of the checkpoint's. The cascade is dropped if the patch
    grid changes."""
    if labels:
        card = replace(card, labels=labels)
    if patch_stride not in (None, card.patch_stride):
        card = replace(card, patch_stride=patch_stride, cascade=None)
    if input_size not in (None, card.input.size):
        args = {**card.model_args, "img_size": input_size}
        card = replace(card, input=at_size(card.input, input_size), model_args=args, cascade=None)
    return card


def _labels_of(vit: Network, name: str) -> tuple[str, ...]:
    """Return the labels in timm's configuration, else ImageNet's if the number of classes matches a known
    subset, else numbered labels."""
    named = vit.pretrained_cfg.get("label_names")
    if isinstance(named, Sequence) and named:
        return of_collection(named, f"label_names of {name}")
    subset = infer_imagenet_subset(vit)
    if subset is None:
        return tuple(f"class {index}" for index in range(vit.num_classes))
    log.info("%s has %d classes and no labels: using ImageNet's (%s)", name, vit.num_classes, subset)
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(vit.num_classes))
