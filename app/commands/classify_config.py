"""The flags of `trimvit classify`."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.commands.fields import same_as
from app.inference.options import ImageOptions, MaskFormat, Share
from app.settings.settings import Settings
from app.settings.truncated_images import TruncatedImages
from models.dtypes import DtypeName
from models.image_sizes import InputSize
from models.schedule import Criterion, Reducer, Rows
from models.stage_flag import BlocksFlag

# The options of a request under the same name here. `mask` is a file here and `mask_format` the option; what
# is about waiting (`deadline_ms`) means nothing without a server.
_OF_A_REQUEST = (
    *("keep_ratio", "compute", "keep_mass", "cascade", "criterion", "reducer"),
    *("top_k", "mask_stages", "seed"),
)

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


class ClassifyConfig(BaseModel):
    """Label photographs without a server: the model is loaded once and computes them in batches.

    Each may be a file, a folder of images or - for one image from standard input. The options are those of
    POST /v1/classify."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_ratio: Share | None = Field(
        None,
        description="Share of the remaining patches kept at each stage; 1 prunes nothing. Only one of "
        "`keep_ratio`, `compute`, `keep_mass` and `cascade`. Default: 1.",
    )
    compute: Share | None = same_as(ImageOptions, "compute")
    keep_mass: Share | None = same_as(ImageOptions, "keep_mass")
    cascade: bool = Field(
        default=False,
        description="A cheap run first, and the unpruned model where that is unsure, both as `trimvit "
        "calibrate` fitted them for this checkpoint. In place of `keep_ratio`; not with `criterion` or "
        "`reducer`.",
    )
    criterion: Criterion | None = same_as(ImageOptions, "criterion", default_is="the checkpoint's")
    reducer: Reducer | None = same_as(ImageOptions, "reducer", default_is="the checkpoint's")
    top_k: int = same_as(ImageOptions, "top_k")
    seed: int = same_as(ImageOptions, "seed")

    as_json: bool = Field(
        default=False,
        validation_alias="json",
        description="A line of JSON for each photograph, in the form of the server's results; one that could "
        "not be answered has a `problem`.",
    )
    mask: Path | None = Field(
        None,
        description="Save what the model saw with the pruned patches dimmed: a file for one photograph, a "
        "folder for several.",
    )
    mask_format: MaskFormat = Field(
        "none", description="Also put the kept patches into the lines of --json, as over HTTP."
    )
    mask_stages: bool = Field(
        default=False,
        description="The mask after every stage, not only after the last; in the picture side by side.",
    )

    model: str = same_as(Settings, "model")
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
        description="auto (the first GPU, else the CPU), cpu or cuda:N.",
    )
    dtype: DtypeName = same_as(Settings, "dtype")
    batch_size: int = Field(16, ge=1, description="Images computed together.")
    max_image_pixels: int = same_as(Settings, "max_image_pixels")
    truncated_images: TruncatedImages = same_as(Settings, "truncated_images")

    @model_validator(mode="after")
    def _go_together(self) -> "ClassifyConfig":
        _ = self.options
        if self.mask_format != "none" and not self.as_json:
            raise ValueError(
                "--mask-format is for the lines of --json: give both, or --mask FILE for a picture"
            )
        if self.mask_stages and self.mask is None and self.mask_format == "none":
            raise ValueError("--mask-stages needs --mask or --mask-format")
        return self

    @property
    def options(self) -> ImageOptions:
        """What is asked of each image. Raises ValueError for options that exclude each other, in the words of
        HTTP."""
        try:
            return ImageOptions(
                **{name: getattr(self, name) for name in _OF_A_REQUEST}, mask=self.mask_format
            )
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error

    @property
    def settings(self) -> Settings:
        """A server's settings for this model, but none from the environment."""
        return Settings.model_construct(**{name: getattr(self, name) for name in _OF_THE_MODEL})
