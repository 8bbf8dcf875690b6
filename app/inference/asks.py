"""An image's options, the server's defaults and the checkpoint's own method -> the request to the network."""

from typing import Literal

from app.dispatch.policy.brown_out import AUTO_FLOOR
from app.errors import InvalidValue, NoClasses
from app.inference.options import ImageOptions
from app.messages.image import Ask
from app.messages.model import ModelInfo
from app.settings.model import ModelSettings
from models.offered import check_criteria, check_reducers
from models.schedule import Pruning, keep_ratio_for


def default_keep_ratio(settings: ModelSettings, model: ModelInfo) -> float:
    """The keep ratio of images that name none and nothing in its place: the default of the model, else that
    of the server."""
    return settings.own_defaults(model.name).keep_ratio or settings.default_keep_ratio


def ask_of(
    options: ImageOptions,
    settings: ModelSettings,
    model: ModelInfo,
    *,
    kept_patches: bool = False,
    logits: bool = False,
    features: bool = False,
) -> Ask:
    """The request for an image, with the kept patches if the options or ``kept_patches`` ask for them, and
    with all ``logits`` and the ``features`` if requested. Raises InvalidValue for what this model or these
    defaults do not allow, and NoClasses if classes are requested of a model that has none."""
    if not model.labels and (options.top_k or logits):
        raise NoClasses(
            f"{model.name} has no classification head, only features: use POST /v1/embed, or add a head "
            "with trimvit serve --head FILE"
        )
    kept_patches = kept_patches or options.mask != "none"
    top_k = min(options.top_k, len(model.labels))
    if options.cascade:
        if model.cascade is None:
            raise InvalidValue(
                "this model has no cascade (`trimvit calibrate` adds one to a checkpoint); use "
                "keep_ratio, compute or keep_mass"
            )
        first, margin = model.cascade.first, model.cascade.margin
        if kept_patches:
            _check_shows_patches(first, None)
        return Ask(first, top_k, margin, kept_patches, logits, features=features)
    try:
        pruning, floor = _pruning(options, settings, model)
    except ValueError as error:
        # An unsupported criterion or reducer, a compute that no ratio reaches, or merging by mass.
        raise InvalidValue(str(error)) from error
    if floor is not None and floor > pruning.keep_ratio:
        raise InvalidValue(
            f"min_keep_ratio is {floor:g}, but must be at most the keep ratio, which is "
            f"{pruning.keep_ratio:g}"
        )
    if kept_patches:
        _check_shows_patches(pruning, floor)
    return Ask(pruning, top_k, None, kept_patches, logits, floor, features)


def _check_shows_patches(pruning: Pruning, floor: float | None) -> None:
    """Raises InvalidValue if a mask is requested of an image that may be pruned with a reducer that keeps no
    patches."""
    if pruning.reducer == "pool" and (pruning.prunes or floor is not None):
        raise InvalidValue(
            "a mask shows which patches are kept, but the reducer pool keeps none: what it leaves are "
            "weighted means of all patches; ask for no mask, or use drop, fuse, merge or transform"
        )


def _pruning(
    options: ImageOptions, settings: ModelSettings, model: ModelInfo
) -> tuple[Pruning, float | None]:
    """The pruning without a cascade, and how far its ratio may be lowered. Raises ValueError."""
    method = settings.method_of(model.name, model.method)
    criterion, reducer = options.criterion or method.criterion, options.reducer or method.reducer
    check_criteria([criterion], model.criteria)
    check_reducers([reducer], model.reducers)
    if options.keep_mass is not None:
        by_mass = Pruning(1.0, criterion, reducer, options.seed, options.keep_mass)
        return method.stages.allowing(by_mass), None
    if options.compute is not None:
        ratio = keep_ratio_for(model.architecture, method.stages, options.compute, reducer)
    elif options.keep_ratio == "auto":
        ratio = 1.0
    else:
        ratio = options.keep_ratio or default_keep_ratio(settings, model)
    floor = options.min_keep_ratio or (AUTO_FLOOR if options.keep_ratio == "auto" else None)
    return Pruning(ratio, criterion, reducer, options.seed), floor


def requested_keep_ratio(options: ImageOptions, ask: Ask) -> float | Literal["auto"] | None:
    """The keep ratio that these options name, directly or as a compute. The ``ask`` was made from them. None
    with keep_mass or a cascade."""
    if options.keep_ratio == "auto":
        return "auto"
    if ask.margin is not None or ask.pruning.keep_mass is not None:
        return None
    return ask.pruning.keep_ratio
