"""A model reference -> a loaded, checked PrunedViT with its labels and input spec.

A reference is the bundled model's name, a timm name (weights from the hub or its local cache),
``hf-hub:owner/name``, or the path of a .safetensors or .pth file. Checkpoints written by `save` carry all
they need in their safetensors header; other files need the name of their timm architecture.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

import timm
import torch
from huggingface_hub import constants, get_session
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from timm.models import load_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from models.cascade import Cascade
from models.files import write_whole
from models.patch_embed import set_patch_stride
from models.pruned_vit import PrunedViT, UnsupportedModelError
from models.schedule import Criterion, Method, Reducer, Stages
from models.transforms import InputSpec

log = logging.getLogger(__name__)

BUNDLED = "trimvit-small-imagenette"
WEIGHTS_FOLDER = Path(__file__).parent / "weights"

_HEADER_KEY = "trimvit"
_FILE_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
_HUB_ANSWERS_S = 10.0
HEADS = ("head.", "head_dist.")


class ModelError(ValueError):
    """A model reference that cannot be served; the text says what to do."""


@dataclass(frozen=True)
class Card:
    """What travels with the weights: how to build the network, what it sees, what it answers, how it is meant
    to be pruned, its origin.

    ``patch_stride``: pixels from one patch to the next; None for patches that do not overlap. ``folders``:
    names of the folders of its training images, in class order like the labels, where they are known.
    """

    architecture: str
    labels: tuple[str, ...]
    input: InputSpec
    stages: Stages
    criterion: Criterion = "variance"
    reducer: Reducer = "drop"
    cascade: Cascade | None = None
    model_args: Mapping[str, object] = field(default_factory=dict)
    origin: Mapping[str, object] = field(default_factory=dict)
    patch_stride: int | None = None
    folders: tuple[str, ...] | None = None


_CARDS = TypeAdapter(Card)


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
    def cascade(self) -> Cascade | None:
        """The fitted cascade; None with other stages than those it was fitted for."""
        return self.card.cascade if self.model.stages == self.card.stages else None


def load(
    reference: str,
    *,
    architecture: str | None = None,
    labels: tuple[str, ...] | None = None,
    stages: Stages | None = None,
    patch_stride: int | None = None,
) -> LoadedModel:
    """Load a model by reference.

    ``architecture`` is the timm name for a file without a TrimViT header; ``labels``, ``stages`` and
    ``patch_stride`` replace what the checkpoint says. Another stride than the one that the weights were
    trained with needs no other weights: the position embedding is resampled to the new grid.

    Raises ModelError where there is no such model, its weights cannot be had or do not fit,
    UnsupportedModelError where its patches cannot be pruned or take no stride, and ValueError for stages or
    a stride that do not fit.
    """
    if reference == BUNDLED:
        path = WEIGHTS_FOLDER / f"{BUNDLED}.safetensors"
        vit, card = _from_file(path, None, patch_stride)
        name = BUNDLED
    elif reference.endswith(_FILE_ENDINGS):
        path = Path(reference)
        if not path.is_file():
            raise ModelError(f"there is no file {reference!r}")
        vit, card = _from_file(path, architecture, patch_stride)
        name = path.stem
    else:
        vit, card = _create(reference, pretrained=True, patch_stride=patch_stride), None
        name = reference
    if vit.num_classes == 0:
        raise ModelError(
            f"{name} answers with features, not with classes: it has no head; fine-tune it first"
        )
    model = PrunedViT(vit.eval(), stages or (card.stages if card else None))
    if card is None:
        card = Card(
            architecture=vit.pretrained_cfg["architecture"],
            labels=labels or _labels_of(vit),
            input=input_spec_of(vit),
            stages=model.stages,
            model_args={"num_classes": vit.num_classes, "img_size": vit.patch_embed.img_size},
            patch_stride=patch_stride,
        )
    if labels:
        card = replace(card, labels=labels)
    if patch_stride not in (None, card.patch_stride):
        card = replace(card, patch_stride=patch_stride, cascade=None)  # it was fitted for another grid
    if len(card.labels) != vit.num_classes:
        raise ModelError(f"{len(card.labels)} labels, but {name} has {vit.num_classes} classes")
    return LoadedModel(name, model, card)


def save(path: Path, vit: VisionTransformer, card: Card) -> None:
    """Write half-precision weights and the card as one safetensors file, replaced in one step."""
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in vit.state_dict().items()}
    content = serialise(tensors, metadata={_HEADER_KEY: _CARDS.dump_json(card).decode()})
    write_whole(path, lambda file: file.write(content))


def create(
    architecture: str, weights: Path | None, *, patch_stride: int | None = None, **model_args: object
) -> VisionTransformer:
    """A timm model to fine-tune: from the hub, or from a weights file of the same architecture.

    The position embedding is resampled to the grid of the image size and of ``patch_stride`` (None: the
    plain grid, whatever the weights were trained with); a head of another size is left as initialised.
    Raises ModelError where weights other than the head's are missing or left over, UnsupportedModelError and
    ValueError where the patch stride cannot be.
    """
    if weights is None and patch_stride is None:
        return _create(architecture, pretrained=True, patch_stride=None, **model_args)
    vit = _create(architecture, pretrained=False, patch_stride=patch_stride, **model_args)
    if weights is not None:
        tensors, source = _read_tensors(weights), weights.name
    else:
        # At the hub's own image size, so that its position embedding is resampled once and not twice.
        at_own_size = {name: value for name, value in model_args.items() if name != "img_size"}
        tensors = _create(architecture, pretrained=True, patch_stride=None, **at_own_size).state_dict()
        source = architecture
    _load_into(vit, _converted(vit, tensors, source), source, head_may_differ=True)
    return vit


def input_spec_of(vit: VisionTransformer) -> InputSpec:
    """timm's own preprocessing of a model. Raises ModelError for a crop that TrimViT does not know."""
    config = resolve_model_data_config(vit)
    if config["crop_mode"] not in ("center", "squash"):
        raise ModelError(f"unknown crop mode {config['crop_mode']!r}; supported: center, squash")
    return InputSpec(
        size=tuple(vit.patch_embed.img_size),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop=config["crop_mode"],
        crop_share=config["crop_pct"],
    )


def _from_file(
    path: Path, architecture: str | None, patch_stride: int | None
) -> tuple[VisionTransformer, Card | None]:
    card = read_card(path)
    if card is None and architecture is None:
        raise ModelError(
            f"{path.name} does not say which timm architecture it is of; name it with --architecture, "
            "for example --architecture deit_small_patch16_224"
        )
    tensors = _read_tensors(path)
    if card is not None:
        vit = _create(card.architecture, pretrained=False, patch_stride=card.patch_stride, **card.model_args)
        # As `save` wrote them, without conversion: timm guesses a file's grid from its number of patches.
        _load_into(vit, tensors, path.name, head_may_differ=False)
        if patch_stride is not None:
            set_patch_stride(vit, patch_stride)
    else:
        assert architecture is not None
        head = tensors.get("head.weight")
        classes = {} if head is None or head.ndim != 2 else {"num_classes": len(head)}
        # The stride before the weights: their position embedding is resampled straight to its grid.
        vit = _create(architecture, pretrained=False, patch_stride=patch_stride, **classes)
        _load_into(vit, _converted(vit, tensors, path.name), path.name, head_may_differ=False)
    return vit, card


def _create(
    architecture: str, *, pretrained: bool, patch_stride: int | None, **model_args: object
) -> VisionTransformer:
    on_hub = architecture.startswith("hf-hub:")
    if not on_hub and not timm.is_model(architecture):
        stem = architecture.split(".")[0]
        near = get_close_matches(stem, timm.list_models(), n=5) or timm.list_models(f"*{stem}*")[:5]
        hint = f" Similar names: {', '.join(near)}." if near else ""
        raise ModelError(f"timm knows no model {architecture!r}.{hint}")
    try:
        with _offline_unless_the_hub_answers() if pretrained else nullcontext():
            model = timm.create_model(architecture, pretrained=pretrained, **model_args)
    except (AssertionError, OSError, RuntimeError, TypeError, ValueError) as error:
        if not pretrained:
            raise ModelError(f"timm cannot build {architecture}: {_first_line(error)}") from error
        raise ModelError(
            f"the weights of {architecture} could not be loaded: {_first_line(error)} "
            "Where the hub cannot be reached, copy the checkpoint here and pass its path: "
            "--model /path/to/model.safetensors "
            f"--architecture {'NAME_OF_ITS_TIMM_ARCHITECTURE' if on_hub else architecture}"
        ) from error
    if not isinstance(model, VisionTransformer):
        raise UnsupportedModelError(f"its class is {type(model).__name__}")
    if patch_stride is not None:
        set_patch_stride(model, patch_stride)
    return model


@contextmanager
def _offline_unless_the_hub_answers() -> Iterator[None]:
    """The local cache alone where the hub does not answer: its own client would try for a minute, and even
    where all that is wanted is in the cache."""
    if constants.HF_HUB_OFFLINE:
        yield
        return
    try:
        # Its session knows the endpoint and the proxies. Any answer will do; errors differ between versions.
        get_session().head(constants.ENDPOINT, timeout=_HUB_ANSWERS_S)
    except Exception as error:
        log.warning("%s does not answer (%s); looking in the local cache alone", constants.ENDPOINT, error)
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def read_card(path: Path) -> Card | None:
    """The card in a safetensors file's header; None where there is none. Raises ModelError for a file or a
    header that cannot be read."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER_KEY)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is not a readable checkpoint: {_first_line(error)}") from error
    try:
        return None if header is None else _CARDS.validate_json(header)
    except ValidationError as error:
        raise ModelError(f"the TrimViT header of {path.name} is not valid: {error}") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The file's tensors in float32; pickled files are read with weights_only, which runs no code."""
    if not path.is_file():
        raise ModelError(f"there is no file {str(path)!r}")
    try:
        tensors = load_state_dict(str(path), use_ema=True, weights_only=True)
    except Exception as error:
        raise ModelError(f"{path} is not a readable checkpoint: {_first_line(error)}") from error
    return {name: tensor.float() for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


def _converted(vit: VisionTransformer, tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors under timm's names, the position embedding resampled to the grid of ``vit``."""
    try:
        converted: dict[str, Tensor] = checkpoint_filter_fn(tensors, vit)
    except Exception as error:
        # timm converts before it compares, and stumbles over foreign shapes in ways of its own.
        raise ModelError(f"{source} does not fit the architecture: {_first_line(error)}") from error
    return converted


def _load_into(
    vit: VisionTransformer, tensors: dict[str, Tensor], source: str, *, head_may_differ: bool
) -> None:
    if head_may_differ:
        own = vit.state_dict()
        tensors = {
            name: tensor
            for name, tensor in tensors.items()
            if not name.startswith(HEADS) or own.get(name, torch.empty(0)).shape == tensor.shape
        }
    try:
        missing, left_over = vit.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise ModelError(f"{source} does not fit the architecture: {error}") from error
    if head_may_differ:
        missing = [name for name in missing if not name.startswith(HEADS)]
    if missing or left_over:
        raise ModelError(
            f"{source} does not fit the architecture: missing {missing[:3] or 'none'}, "
            f"left over {left_over[:3] or 'none'}"
        )


def _labels_of(vit: VisionTransformer) -> tuple[str, ...]:
    """The names in the hub's config, ImageNet's where the number of classes says so, else plain numbers."""
    named = vit.pretrained_cfg.get("label_names")
    if named is not None:
        return tuple(named)
    subset = infer_imagenet_subset(vit)
    if subset is None:
        return tuple(f"class {index}" for index in range(vit.num_classes))
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(vit.num_classes))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
