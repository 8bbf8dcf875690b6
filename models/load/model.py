"""A model reference -> a loaded, checked PrunedViT with its labels and input spec."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset

from models.cascade import Cascade
from models.families import Network
from models.finite import all_finite
from models.load.card import Card, read_card
from models.load.config import TimmConfig, config_in, of_training
from models.load.errors import ModelError
from models.load.files import read_file
from models.load.fit import HEADS, Fit, fit, load_into
from models.load.folder import weights_in
from models.load.hub import offline_unless_the_hub_answers, transformers_folder
from models.load.input_spec import at_size, input_spec_of
from models.load.labels import of_collection
from models.load.own_head import Head, read_head
from models.load.reference import WEIGHT_ENDINGS, existing, located
from models.load.state_dict import Weights, find_weights, holds_network
from models.load.timm_models import FEATURES_ONLY, create_timm, is_projection, project_features
from models.load.transformers_format.config import TransformersConfig
from models.load.transformers_format.config import config_in as transformers_config_in
from models.load.transformers_format.preprocessor import input_spec
from models.load.transformers_format.weights import resampled, under_timms_names
from models.load.uninitialised import Uninitialised
from models.patch_embed import patch_grid, set_image_size, set_patch_stride
from models.pruned_vit import PrunedViT
from models.schedule import Method, Rows, Stages
from models.scores import Scores
from models.stage_blocks import Blocks, stages_of
from models.transforms import InputSpec

__all__ = ["HEADS", "LoadedModel", "Start", "create", "load"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model in float32 on the CPU, in evaluation mode, with its card: the checkpoint's, or what timm says
    of it. The model's stages hold, where they are others than the card's."""

    name: str
    model: PrunedViT
    card: Card

    @property
    def labels(self) -> tuple[str, ...]:
        """In class order."""
        return self.card.labels

    @property
    def input(self) -> InputSpec:
        """What it sees of a photograph."""
        return self.card.input

    @property
    def method(self) -> Method:
        """How it is pruned where nothing else is asked for."""
        return Method(self.model.stages, self.card.criterion, self.card.reducer)

    @property
    def scores(self) -> Scores:
        """What makes its logits scores."""
        return self.card.scores

    def at_stages(self, blocks: Blocks | None, rows: Rows | None = None) -> "LoadedModel":
        """The same, pruned in other blocks or by other rows (see `stage_blocks.stages_of`). Raises ValueError
        for blocks that it does not have, UnsupportedModelError for rows."""
        own = self.model.stages
        stages = stages_of(blocks, rows, own, self.model.arch.depth)
        return self if stages == own else replace(self, model=PrunedViT(self.model.vit, stages))

    @property
    def cascade(self) -> Cascade | None:
        """The fitted cascade; None with other stages than those it was fitted for."""
        return self.card.cascade if self.model.stages == self.card.stages else None


@dataclass(frozen=True)
class Start:
    """A network to fine-tune, and what a card must say to build it again beside classes and image size."""

    vit: Network
    model_args: dict[str, Any]


@dataclass(frozen=True)
class _Network:
    """A network with weights, as its source has it: with a card, or with what is known without one.
    ``input``: None for timm's own preprocessing of it."""

    name: str
    vit: Network
    architecture: str
    card: Card | None = None
    labels: tuple[str, ...] | None = None
    model_args: dict[str, Any] | None = None
    input: InputSpec | None = None
    scores: Scores = "softmax"


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
    """Load a model by reference: the bundled model's name, a timm name (weights from the hub or its local
    cache), ``owner/name`` on the hub, or the path of a file or folder. Whether timm or transformers saved a
    repository or folder is found out.

    ``architecture`` is the timm name for weights that do not say it themselves; ``labels``, ``stages``,
    ``patch_stride`` and ``input_size`` (height, width in pixels) replace what the checkpoint says. Another
    stride or size than the one that the weights were trained with needs no other weights: the position
    embedding is resampled to the new grid. ``headless`` allows a network without classes, for its features;
    the projection of a tower of CLIP is part of these. ``head`` is a file with a head of one's own, which is
    put on the network.

    Raises ModelError where there is no such model, its weights cannot be had or do not fit,
    UnsupportedModelError where its patches cannot be pruned or take no stride, and ValueError for stages, a
    stride or a size that do not fit.
    """
    place = located(reference)
    if isinstance(place, Path):
        network = _from_path(place, architecture, patch_stride)
    else:
        with offline_unless_the_hub_answers():
            network = _by_name(place, architecture, patch_stride)
    own_head = None if head is None else read_head(head)
    return _loaded(network, labels, stages, patch_stride, input_size, own_head, headless=headless)


def _loaded(
    network: _Network,
    labels: tuple[str, ...] | None,
    stages: Stages | None,
    patch_stride: int | None,
    input_size: tuple[int, int] | None,
    head: Head | None,
    *,
    headless: bool,
) -> LoadedModel:
    vit, name, card = network.vit, network.name, network.card
    headless |= head is not None
    if vit.num_classes == 0 and not headless:
        raise ModelError(f"{name} {FEATURES_ONLY.format(why='it has no head')}")
    named = labels or network.labels or (card.labels if card else None)
    sure = "." in network.architecture  # timm's own weights, by their tag
    projects = vit.num_classes and is_projection(network.architecture, vit.num_classes)
    if card is None and (sure or not named or head is not None) and projects:
        why = f"its head of {vit.num_classes} is a projection of CLIP"
        hint = "" if sure else " (if they are classes, name them with --labels)"
        if not headless:
            raise ModelError(f"{name} {FEATURES_ONLY.format(why=why)}{hint}")
        log.info("%s: %s, so it is part of the features%s", name, why, hint)
        project_features(vit)
        named = None
    if input_size is not None:
        set_image_size(vit, input_size)
    if head is not None:
        head.put_on(vit, PrunedViT(vit, Stages((), "all")).feature_width)
        named = labels or head.labels or tuple(f"class {index}" for index in range(vit.num_classes))
    _refuse_no_numbers(vit, name)
    model = PrunedViT(vit.eval(), stages or (card.stages if card else None))
    if card is None:
        card = Card(
            architecture=vit.pretrained_cfg["architecture"],
            labels=labels or ((named or _labels_of(vit, name)) if vit.num_classes else ()),
            input=at_size(network.input or input_spec_of(vit), tuple(vit.patch_embed.img_size)),
            stages=model.stages,
            scores=network.scores if head is None else head.scores,
            model_args={
                **(network.model_args or {}),
                "num_classes": vit.num_classes,
                "img_size": vit.patch_embed.img_size,
            },
            patch_stride=patch_stride,
        )
    elif head is not None:  # the cascade was fitted for another
        assert named is not None
        card = replace(card, labels=named, scores=head.scores, cascade=None, folders=None)
    if labels:
        card = replace(card, labels=labels)
    if patch_stride not in (None, card.patch_stride):
        card = replace(card, patch_stride=patch_stride, cascade=None)  # it was fitted for another grid
    if input_size not in (None, card.input.size):
        args = {**card.model_args, "img_size": input_size}
        card = replace(card, input=at_size(card.input, input_size), model_args=args, cascade=None)
    if len(card.labels) != vit.num_classes:
        raise ModelError(
            f"{len(card.labels)} labels, but {name} has {vit.num_classes or 'no'} classes; "
            "a label is wanted for each, in class order"
        )
    return LoadedModel(name, model, card)


def create(
    architecture: str, weights: Path | None, *, patch_stride: int | None = None, **model_args: Any
) -> Start:
    """A timm model to fine-tune: from the hub, or from weights of the same architecture.

    The position embedding is resampled to the grid of the image size and of ``patch_stride`` (None: the
    plain grid, whatever the weights were trained with); a head of another size is left as initialised.
    Raises ModelError where weights other than the head's are missing or left over, UnsupportedModelError and
    ValueError where the patch stride cannot be.
    """
    if weights is None and patch_stride is None:
        return Start(create_timm(architecture, pretrained=True, **model_args), {})
    if weights is None:
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
    else:
        started = _start(architecture, _file_at(existing(str(weights))), patch_stride)
    size = model_args.pop("img_size", started.usual)
    vit = started.build(patch_stride=patch_stride, head_may_differ=True, img_size=size, **model_args)
    _refuse_no_numbers(vit, started.source)
    return Start(
        vit,
        {
            name: value
            for name, value in started.model_args.items()
            if name not in ("num_classes", "img_size")
        },
    )


def _start(architecture: str, file: Path, patch_stride: int | None) -> Fit:
    """Weights to start from: their head does not matter, and how they pool only where it is certain."""
    card = read_card(file)
    content = read_file(file)
    if not holds_network(content) and transformers_config_in(file.parent) is not None:
        raise ModelError(
            f"{file} is of transformers, whose classifiers are served, not yet trained further; start from "
            "timm's weights of the network (--architecture), or train it with transformers"
        )
    found = find_weights(content, file)
    if card is not None:
        size = card.input.size
        grid = _grid(card)
        args = {name: value for name, value in card.model_args.items() if name != "num_classes"}
        return fit(
            architecture,
            found.tensors,
            file.name,
            model_args={**args, "img_size": size},
            grid=grid,
            pooling_matters=False,
        )
    known = _known(file, found, architecture)
    args = {name: value for name, value in known.model_args.items() if name != "num_classes"}
    return fit(
        architecture,
        found.tensors,
        file.name,
        model_args=args,
        pretrained_cfg=known.pretrained_cfg,
        patch_stride=patch_stride,
        pooling_matters=False,
    )


def _grid(card: Card) -> tuple[int, int]:
    vit = create_timm(card.architecture, pretrained=False, patch_stride=None, **dict(card.model_args))
    kernel = vit.patch_embed.proj.kernel_size
    stride = (card.patch_stride, card.patch_stride) if card.patch_stride else kernel
    return patch_grid(card.input.size, kernel, stride)


def _by_name(name: str, architecture: str | None, patch_stride: int | None) -> _Network:
    """timm's name, or ``hf-hub:owner/name``."""
    on_hub = name.startswith("hf-hub:")
    folder = transformers_folder(name.removeprefix("hf-hub:")) if on_hub else None
    if folder is not None:
        return replace(_from_path(folder, architecture, patch_stride), name=name)
    vit = create_timm(name, pretrained=True, patch_stride=patch_stride)
    tagged = name if "." in name and not on_hub else vit.pretrained_cfg["architecture"]
    args = dict(getattr(vit, "pretrained_model_args", {}) or {})
    return _Network(name, vit, tagged, model_args=args)


def _from_path(path: Path, architecture: str | None, patch_stride: int | None) -> _Network:
    file = _file_at(path)
    card = read_card(file)
    name = _name_of(path)
    if card is not None:
        with Uninitialised():
            vit = create_timm(
                card.architecture, pretrained=False, patch_stride=card.patch_stride, **card.model_args
            )
        # As `save` wrote them, without conversion: timm guesses a file's grid from its number of patches.
        load_into(vit, find_weights(read_file(file), file).tensors, file.name, head_may_differ=False)
        if patch_stride is not None:
            set_patch_stride(vit, patch_stride)
        return _Network(name, vit, card.architecture, card)
    content = read_file(file)
    config = None if holds_network(content) else transformers_config_in(file.parent)
    if config is not None:
        return _of_transformers(name, file, content, config, architecture, patch_stride)
    found = find_weights(content, file)
    known = _known(file, found, architecture)
    if known.architecture is None:
        raise ModelError(
            f"{file.name} does not say which timm architecture it is of; name it with --architecture, "
            f"for example --architecture {_looks_like(found)}"
        )
    if found.clips:
        raise ModelError(f"{name} {FEATURES_ONLY.format(why='it is an image tower of CLIP')}")
    fitted = fit(
        known.architecture,
        found.tensors,
        file.name,
        model_args=known.model_args,
        pretrained_cfg=known.pretrained_cfg,
        patch_stride=patch_stride,
    )
    classes = fitted.model_args.get("num_classes")
    if classes and known.num_classes not in (None, classes):
        raise ModelError(
            f"{file.name} has a head of {classes} classes, but {known.path} says {known.num_classes}; "
            "one of them belongs to another model"
        )
    if fitted.size != fitted.usual:
        log.warning(
            "%s: its position embedding is of %d x %d pixels, so it sees images of that size, not %d x %d "
            "of %s",
            *(file.name, *fitted.size, *fitted.usual, known.path or known.architecture),
        )
    vit = fitted.build(patch_stride=patch_stride)
    return _Network(name, vit, _stem(known.architecture), labels=known.labels, model_args=fitted.model_args)


def _of_transformers(
    name: str,
    file: Path,
    content: object,
    config: TransformersConfig,
    architecture: str | None,
    patch_stride: int | None,
) -> _Network:
    if architecture is not None:
        log.warning("%s says what it is (%s); --architecture is not needed", config.path, config.name)
    tensors = under_timms_names(content, config, file)
    seen = input_spec(file.parent, config)
    classes = len(tensors["head.weight"])
    args = {**config.args, "img_size": seen.size, "num_classes": classes}
    with Uninitialised():
        vit = create_timm(config.kind.architecture, pretrained=False, **args)
    tensors = resampled(tensors, config, tuple(vit.patch_embed.grid_size))
    load_into(vit, tensors, file.name, head_may_differ=False)
    if patch_stride is not None:
        set_patch_stride(vit, patch_stride)
    return _Network(
        name, vit, config.kind.architecture, None, config.labels, args, input=seen, scores=config.scores
    )


def _file_at(path: Path) -> Path:
    return weights_in(path) if path.is_dir() else path


def _name_of(path: Path) -> str:
    """What a model is called after its file or folder."""
    if path.is_dir():
        return path.resolve().name or str(path)
    name = path.name.removesuffix(".index.json")
    ending = next((ending for ending in WEIGHT_ENDINGS if name.endswith(ending)), "")
    return name.removesuffix(ending) or path.name


def _known(file: Path, found: Weights, architecture: str | None) -> TimmConfig:
    """What config.json beside the file says, else what timm's training script wrote into it, else the
    architecture named."""
    config = config_in(file.parent)
    if config is not None:
        if architecture is not None and _stem(architecture) != _stem(config.architecture):
            raise ModelError(
                f"{config.path} says that the architecture is {config.architecture}, and --architecture says "
                f"{architecture}; leave the flag out, or move the weights to a folder of their own"
            )
        return config
    if found.architecture and architecture and _stem(architecture) != _stem(found.architecture):
        log.warning(
            "%s says that it is of %s; it is loaded as %s, as asked for",
            *(file.name, found.architecture, architecture),
        )
        return TimmConfig(architecture=architecture)
    if found.architecture is not None:
        return of_training(architecture or found.architecture, found.arguments)
    return TimmConfig(architecture=architecture)


def _stem(architecture: str | None) -> str:
    return (architecture or "").partition(".")[0]


def _looks_like(found: Weights) -> str:
    """An architecture of this width and patch size, as an example."""
    weight = found.tensors.get("patch_embed.proj.weight")
    sizes = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
    if weight is None or weight.ndim != 4 or weight.shape[0] not in sizes:
        return "deit_small_patch16_224"
    return f"vit_{sizes[weight.shape[0]]}_patch{weight.shape[2]}_224"


def _refuse_no_numbers(vit: Network, name: str) -> None:
    """Weights from the hub are looked at here; those of files also where they are read. Finite weights may
    be so large that what is computed from them is not."""
    for tensor_name, tensor in vit.state_dict().items():
        if not all_finite(tensor):
            raise ModelError(
                f"{name} is not served: {tensor_name} has values that are NaN or infinite; "
                "take an earlier checkpoint"
            )
    convolution = vit.patch_embed.proj
    height, width = vit.patch_embed.img_size
    was_training = vit.training
    noise = torch.randn(1, convolution.in_channels, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        scores = vit.eval()(noise)
    vit.train(was_training)
    if not torch.isfinite(scores).all():
        largest = max(vit.state_dict().items(), key=lambda item: item[1].abs().max().item())[0]
        raise ModelError(
            f"{name} is not served: its scores for noise are NaN or infinite, although its weights "
            f"are not ({largest} has the largest); the file is damaged, or its training diverged"
        )


def _labels_of(vit: Network, name: str) -> tuple[str, ...]:
    """The names in the hub's config, ImageNet's where the number of classes says so, else plain numbers."""
    named = vit.pretrained_cfg.get("label_names")
    if isinstance(named, Sequence) and named:
        return of_collection(named, f"label_names of {name}")
    subset = infer_imagenet_subset(vit)
    if subset is None:
        return tuple(f"class {index}" for index in range(vit.num_classes))
    log.info("%s has %d classes and no labels: ImageNet's (%s) are taken", name, vit.num_classes, subset)
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(vit.num_classes))
