"""Build a network with weights saved by timm, transformers or `trimvit train`."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.clusters import add_clusters
from models.families import Network
from models.life import add_predictor
from models.load.beside import known_of, stem
from models.load.card import Card, read_card
from models.load.errors import ModelError
from models.load.files import read_file
from models.load.fit import fit, load_into
from models.load.folder import file_at
from models.load.hub import transformers_folder
from models.load.reference import WEIGHT_ENDINGS
from models.load.state_dict import Weights, find_weights, holds_network
from models.load.timm_models import FEATURES_ONLY, create_timm
from models.load.transformers_format.config import TransformersConfig
from models.load.transformers_format.config import config_in as transformers_config_in
from models.load.transformers_format.preprocessor import input_spec
from models.load.transformers_format.weights import resampled, under_timms_names
from models.load.uninitialised import Uninitialised
from models.patch_embed import set_patch_stride
from models.scores import Scores, scores_for
from models.static_attention import make_static
from models.token_pool import add_pools
from models.transforms import InputSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedNetwork:
    """A network with weights, and its card. Without a card, the other fields hold what is known about it.
    ``input``: None for the preprocessing that timm specifies."""

    name: str
    vit: Network
    architecture: str
    card: Card | None = None
    labels: tuple[str, ...] | None = None
    model_args: dict[str, Any] | None = None
    input: InputSpec | None = None
    scores: Scores = "softmax"


def by_name(name: str, architecture: str | None, patch_stride: int | None) -> SavedNetwork:
    """Load a network by its timm name or ``hf-hub:owner/name``. Raises ModelError."""
    on_hub = name.startswith("hf-hub:")
    folder = transformers_folder(name.removeprefix("hf-hub:")) if on_hub else None
    if folder is not None:
        return replace(from_path(folder, architecture, patch_stride), name=name)
    vit = create_timm(name, pretrained=True, patch_stride=patch_stride)
    tagged = name if "." in name and not on_hub else vit.pretrained_cfg["architecture"]
    args = dict(getattr(vit, "pretrained_model_args", {}) or {})
    return SavedNetwork(name, vit, tagged, model_args=args, scores=scores_for(None, vit.num_classes))


def from_path(path: Path, architecture: str | None, patch_stride: int | None) -> SavedNetwork:
    """Load a network from a file or folder. Raises ModelError, for example if the architecture of the weights
    is unknown."""
    file = file_at(path)
    card = read_card(file)
    name = _name_of(path)
    if card is not None:
        with Uninitialised():
            vit = create_timm(
                card.architecture, pretrained=False, patch_stride=card.patch_stride, **card.model_args
            )
            if card.life_block is not None:
                add_predictor(vit, card.life_block)
            if card.paca is not None:
                add_clusters(tuple(vit.blocks), card.paca, vit.embed_dim)
            make_static(vit, card.static_blocks)
            if card.pool_blocks is not None:
                add_pools(tuple(vit.blocks), card.pool_blocks, vit.embed_dim, vit.patch_embed.grid_size)
        # Loaded without timm's conversion, which guesses the grid from the number of patches.
        load_into(vit, find_weights(read_file(file), file).tensors, file.name, head_may_differ=False)
        if patch_stride is not None:
            set_patch_stride(vit, patch_stride)
        return SavedNetwork(name, vit, card.architecture, card)
    content = read_file(file)
    config = None if holds_network(content) else transformers_config_in(file.parent)
    if config is not None:
        return _of_transformers(name, file, content, config, architecture, patch_stride)
    found = find_weights(content, file)
    known = known_of(file, found, architecture)
    if known.architecture is None:
        raise ModelError(
            f"{file.name} does not contain the name of its timm architecture; give it with --architecture, "
            f"for example --architecture {_looks_like(found)}, or, on a server with several models, in a "
            f'config.json in the folder of the file: {{"architecture": "{_looks_like(found)}"}}'
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
            f"{file.name} has a head with {classes} classes, but {known.path} has {known.num_classes}; "
            "one of them belongs to another model"
        )
    if fitted.size != fitted.usual:
        log.warning(
            "%s: its position embedding is for %d x %d pixels, which becomes the input size instead of "
            "%d x %d of %s",
            *(file.name, *fitted.size, *fitted.usual, known.path or known.architecture),
        )
    vit = fitted.build(patch_stride=patch_stride)
    return SavedNetwork(
        name,
        vit,
        stem(known.architecture),
        labels=known.labels,
        model_args=fitted.model_args,
        scores=scores_for(known.problem, vit.num_classes),
    )


def _of_transformers(
    name: str,
    file: Path,
    content: object,
    config: TransformersConfig,
    architecture: str | None,
    patch_stride: int | None,
) -> SavedNetwork:
    if architecture is not None:
        log.warning("%s names its architecture (%s); --architecture is not needed", config.path, config.name)
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
    return SavedNetwork(
        name, vit, config.kind.architecture, None, config.labels, args, input=seen, scores=config.scores
    )


def _name_of(path: Path) -> str:
    """Return a model's name, derived from its file or folder."""
    if path.is_dir():
        return path.resolve().name or str(path)
    name = path.name.removesuffix(".index.json")
    ending = next((ending for ending in WEIGHT_ENDINGS if name.endswith(ending)), "")
    return name.removesuffix(ending) or path.name


def _looks_like(found: Weights) -> str:
    """Return an architecture with this width and patch size, as an example for an error message."""
    weight = found.tensors.get("patch_embed.proj.weight")
    sizes = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
    if weight is None or weight.ndim != 4 or weight.shape[0] not in sizes:
        return "deit_small_patch16_224"
    return f"vit_{sizes[weight.shape[0]]}_patch{weight.shape[2]}_224"
