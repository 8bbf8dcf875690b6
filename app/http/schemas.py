"""What goes over HTTP on /v1: options, answers, problems."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.schedule import Criterion

MaskFormat = Literal["none", "indices", "grid", "png"]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class ImageOptions(BaseModel):
    """What may be asked of one image."""

    model_config = ConfigDict(extra="forbid")

    keep_ratio: Share | None = Field(
        None,
        description="Share of the remaining patches kept at each stage; 1 prunes nothing. Not together with "
        "`compute`. Default: the server's (see /v1/models).",
        examples=[0.7],
    )
    compute: Share | None = Field(
        None,
        description="Share of the unpruned model's multiply-accumulates to spend at most; the keep ratio "
        "follows. Not together with `keep_ratio`.",
        examples=[None],
    )
    criterion: Criterion | None = Field(
        None, description="How a patch's importance is computed. Default: the server's (see /v1/models)."
    )
    top_k: int = Field(5, ge=1, le=1000, description="Labels to answer with, best first.")
    mask: MaskFormat = Field(
        "none",
        description="Which patches were kept: as `indices` (row by row from the top left), as a `grid` of 0 "
        "and 1, or as a `png` of what the model saw with the pruned patches dimmed (base64).",
    )
    mask_stages: bool = Field(
        default=False, description="The mask after every stage, not only after the last."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the `random` criterion.")
    deadline_ms: int | None = Field(
        None, ge=1, le=600_000, description="Give up after so many milliseconds, with 504."
    )

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> "ImageOptions":
        if self.keep_ratio is not None and self.compute is not None:
            raise ValueError("give keep_ratio or compute, not both")
        return self


class JsonImage(ImageOptions):
    """One image with options of its own."""

    image: str = Field(description="The encoded image (JPEG, PNG, ...), in base64.")


class ClassifyRequest(ImageOptions):
    """Many images, each with its own options; options beside `images` hold for those that say nothing."""

    images: list[JsonImage] = Field(min_length=1)


class Label(BaseModel):
    """A class and its probability."""

    index: int = Field(ge=0)
    label: str
    score: float = Field(ge=0, le=1, description="Softmax probability.")


class Patches(BaseModel):
    """How many patches were there and how many were kept."""

    total: int = Field(ge=1)
    kept: int = Field(ge=1, description="After the last stage.")
    per_stage: list[int] = Field(description="Left after each stage.")
    grid: tuple[int, int] = Field(description="Rows and columns of the patch grid.")


class StageMask(BaseModel):
    """The kept patches after one stage, in the format that was asked for."""

    block: int = Field(ge=1, description="The block of the stage, counted from 1.")
    indices: list[int] | None = None
    grid: list[list[int]] | None = None
    png: str | None = Field(None, description="base64")


class ImageResult(BaseModel):
    """The answer for one image."""

    labels: list[Label]
    keep_ratio: float = Field(gt=0, le=1, description="The ratio that was applied.")
    criterion: Criterion
    patches: Patches
    compute: float = Field(gt=0, le=1, description="Share of the unpruned model's multiply-accumulates.")
    mask: list[StageMask] | None = None


class Timings(BaseModel):
    """Milliseconds; of several images, the longest of each phase."""

    decode: float
    queue: float
    compute: float
    total: float


class ClassifyResponse(BaseModel):
    """One result per image, in the order of the request."""

    model: str
    results: list[ImageResult]
    timings_ms: Timings


class ProblemDocument(BaseModel):
    """RFC 9457: what was wrong and what is allowed."""

    type: str
    title: str
    status: int
    detail: str
    image: int | None = Field(None, description="Place in the request of the image at fault, from 0.")


class InputInfo(BaseModel):
    """What the model sees of a photograph."""

    height: int
    width: int
    interpolation: str
    crop: str
    crop_share: float


class ModelDescription(BaseModel):
    """A model that is served."""

    name: str
    labels: list[str]
    input: InputInfo
    patches: int
    grid: tuple[int, int] = Field(description="Rows and columns of the patch grid.")
    patch_size: tuple[int, int] = Field(description="Height and width of a patch in the input, in pixels.")
    patch_stride: tuple[int, int] = Field(
        description="Pixels from one patch to the next, down and across; below the size, patches overlap."
    )
    stages: list[int] = Field(description="Blocks that prune, counted from 1.")
    criteria: list[Criterion]
    default_keep_ratio: float
    default_criterion: Criterion
    device: str
    dtype: str


class ModelList(BaseModel):
    """Everything that is served."""

    models: list[ModelDescription]


class EngineState(BaseModel):
    """One engine, as this front end sees it."""

    ready: bool
    device: str | None
    images_pending: int


class Readiness(BaseModel):
    """Whether images are answered, and by which engines."""

    status: Literal["ready", "not ready"]
    engines: list[EngineState]
