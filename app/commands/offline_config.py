"""The flags shared by the commands without a server: how to prune, and which model."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.commands.fields import same_as
from app.inference.options import ImageOptions, Share
from app.settings.settings import Settings
from app.settings.truncated_images import TruncatedImages
from models.bundled import BUNDLED_MODEL
from models.dtypes import DtypeName
from models.image_sizes import InputSize
from models.schedule import Criterion, Reducer, Rows
from models.stage_flag import BlocksFlag

Options = TypeVar("Options", bound=ImageOptions)

# The options of a request, with the same names. Options about waiting (`deadline_ms`) have no meaning without
# a server.
_PRUNING = ("keep_ratio", "compute", "keep_mass", "cascade", "criterion", "reducer", "seed")

_OF_THE_MODEL = (
    "model",
    "architecture",
    "patch_stride",
    "input_size",
    "labels",
    "head",
    "stages",
    "rows",
    "device",
    "dtype",
)


_ONE_MODEL = (Settings.model_fields["model"].description or "").partition(" To serve several models")[0]


class OfflineConfig(BaseModel):
    """How photographs are pruned and read, and the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_ratio: Share | None = Field(
        None,
        description="Share of the remaining patches kept at each stage; 1 prunes nothing. Only one of "
        "`keep_ratio`, `compute`, `keep_mass` and `cascade` can be given. Default: 1.",
    )
    compute: Share | None = same_as(ImageOptions, "compute")
    keep_mass: Share | None = same_as(ImageOptions, "keep_mass")
    cascade: bool = Field(
        default=False,
        description="Computes the image at a low ratio first, and again without pruning if the result is "
        "uncertain, as fitted by `trimvit calibrate` for this checkpoint. Cannot be combined "
        "with `keep_ratio`, `criterion` or `reducer`.",
    )
    criterion: Criterion | None = same_as(ImageOptions, "criterion", default_is="that of the checkpoint")
    reducer: Reducer | None = same_as(ImageOptions, "reducer", default_is="that of the checkpoint")
    seed: int = same_as(ImageOptions, "seed")

    model: str = Field(BUNDLED_MODEL, description=_ONE_MODEL)
    architecture: str | None = same_as(Settings, "architecture")
    patch_stride: int | None = same_as(Settings, "patch_stride")
    input_size: InputSize = same_as(Settings, "input_size")
    labels: Path | None = same_as(Settings, "labels")
    head: Path | None = same_as(Settings, "head")
    stages: BlocksFlag = same_as(Settings, "stages")
    rows: Rows | None = same_as(Settings, "rows")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="Device: auto (the first GPU, or the CPU), cpu or cuda:N.",
    )
    dtype: DtypeName = same_as(Settings, "dtype")
    batch_size: int = Field(16, ge=1, description="Images per batch.")
    max_image_pixels: int = same_as(Settings, "max_image_pixels")
    truncated_images: TruncatedImages = same_as(Settings, "truncated_images")

    @property
    def settings(self) -> Settings:
        """The settings of a server for this model, without those of the environment."""
        return Settings.model_construct(**{name: getattr(self, name) for name in _OF_THE_MODEL})

    def pruned(self, options: type[Options], **others: object) -> Options:
        """The options of each image. Raises ValueError for options that exclude each other, with the same
        message as over HTTP."""
        try:
            return options(**{name: getattr(self, name) for name in _PRUNING}, **others)
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
