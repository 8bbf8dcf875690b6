"""An image's options, the server's defaults and the checkpoint's own method -> how the image is pruned."""

from dataclasses import dataclass
from typing import Literal

from app.dispatch.policy.brown_out import AUTO_FLOOR
from app.errors import InvalidValue
from app.inference.options import ImageOptions
from app.messages.model import ModelInfo
from app.settings.model import ModelSettings
from models.schedule import Method, Pruning, keep_ratio_for


@dataclass(frozen=True, slots=True)
class ResolvedOptions:
    """How an image is to be pruned, and with a ``margin``, when it is to be run again unpruned.

    With a ``min_keep_ratio`` the dispatcher may lower the ratio to it; ``auto``: it is to choose.
    """

    pruning: Pruning
    margin: float | None = None
    min_keep_ratio: float | None = None
    auto: bool = False

    @property
    def requested(self) -> float | Literal["auto"] | None:
        """The ratio as it was asked for."""
        return "auto" if self.auto else self.keep_ratio

    @property
    def keep_ratio(self) -> float | None:
        """The ratio that was asked for, itself or as a compute; None with auto, keep_mass or a cascade."""
        if self.auto or self.margin is not None or self.pruning.keep_mass is not None:
            return None
        return self.pruning.keep_ratio


def default_method(settings: ModelSettings, model: ModelInfo) -> Method:
    """What images get that name no criterion or reducer: the server's, else the checkpoint's."""
    own = model.method
    return Method(
        own.stages, settings.default_criterion or own.criterion, settings.default_reducer or own.reducer
    )


def resolve(options: ImageOptions, settings: ModelSettings, model: ModelInfo) -> ResolvedOptions:
    """Raises InvalidValue for what this model or these defaults do not allow."""
    if options.cascade:
        if model.cascade is None:
            raise InvalidValue(
                "this model has no cascade (`trimvit calibrate` fits one and writes it into a checkpoint); "
                "allowed are keep_ratio, compute or keep_mass"
            )
        return ResolvedOptions(model.cascade.first, model.cascade.margin)
    method = default_method(settings, model)
    criterion, reducer = options.criterion or method.criterion, options.reducer or method.reducer
    try:
        if options.keep_mass is not None:
            return ResolvedOptions(Pruning(1.0, criterion, reducer, options.seed, options.keep_mass))
        auto = options.keep_ratio == "auto"
        ratio = 1.0 if options.keep_ratio == "auto" else options.keep_ratio or settings.default_keep_ratio
        if options.compute is not None:
            ratio = keep_ratio_for(model.architecture, method.stages, options.compute, reducer)
        floor = options.min_keep_ratio or (AUTO_FLOOR if auto else None)
        if floor is not None and floor > ratio:
            raise InvalidValue(
                f"min_keep_ratio is {floor:g}, above the keep ratio of {ratio:g} that it lowers"
            )
        return ResolvedOptions(
            Pruning(ratio, criterion, reducer, options.seed), min_keep_ratio=floor, auto=auto
        )
    except ValueError as error:  # a compute that no ratio reaches, or merging by mass
        raise InvalidValue(str(error)) from error
