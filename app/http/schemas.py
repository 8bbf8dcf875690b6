"""What goes over HTTP on /v1: options, answers, problems."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.schedule import Criterion, Reducer

MaskFormat = Literal["none", "indices", "grid", "png"]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]

WAYS_TO_CHOOSE = ("keep_ratio", "compute", "keep_mass", "cascade")
CHOSEN_BY_A_CASCADE = ("criterion", "reducer")


class ImageOptions(BaseModel):
    """What may be asked of one image."""

    model_config = ConfigDict(extra="forbid")

    keep_ratio: Share | None = Field(
        None,
        description="Share of the remaining patches kept at each stage; 1 prunes nothing. Only one of "
        "`keep_ratio`, `compute`, `keep_mass` and `cascade`. Default: the server's (see /v1/models).",
        examples=[0.7],
    )
    compute: Share | None = Field(
        None,
        description="Share of the unpruned model's multiply-accumulates to spend at most; the keep ratio "
        "follows, the same for every image. In place of `keep_ratio`.",
        examples=[None],
    )
    keep_mass: Share | None = Field(
        None,
        description="Share of the image's total importance: the first stage keeps the fewest patches that "
        "hold it, and the share of patches they are is the keep ratio of the later stages. So each image "
        "gets its own ratio, which the answer names. In place of `keep_ratio`; not with the reducer `merge`.",
        examples=[None],
    )
    cascade: bool = Field(
        default=False,
        description="A cheap run first, and the unpruned model where that is unsure, both as `trimvit "
        "calibrate` fitted them for this checkpoint (see `cascade` in /v1/models). In place of `keep_ratio`; "
        "not with `criterion` or `reducer`.",
        examples=[False],
    )
    criterion: Criterion | None = Field(
        None,
        description="How a patch's importance is computed; the reducer `merge` reads none. Default: the "
        "server's (see /v1/models).",
    )
    reducer: Reducer | None = Field(
        None,
        description="What becomes of the patches that are not kept: they are dropped (`drop`), fused into "
        "one token a stage (`fuse`), or merged into the kept ones most like them (`merge`). Default: the "
        "server's (see /v1/models).",
        examples=[None],
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
        given = [name for name in WAYS_TO_CHOOSE if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"give only one of {', '.join(WAYS_TO_CHOOSE)}; there are {' and '.join(given)}")
        beside = [name for name in CHOSEN_BY_A_CASCADE if getattr(self, name) is not None]
        if self.cascade and beside:
            raise ValueError(
                f"a cascade runs with the criterion and the reducer that it was calibrated with: "
                f"leave out {' and '.join(beside)}, or cascade"
            )
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
    keep_ratio: float = Field(
        gt=0,
        le=1,
        description="The ratio that was applied: with `keep_mass`, what it came to; of a cascade, the first "
        "run's, or 1 where there was a second.",
    )
    criterion: Criterion | None = Field(description="null with the reducer `merge`, which reads none.")
    reducer: Reducer
    patches: Patches
    compute: float = Field(
        gt=0,
        le=2,
        description="Share of the unpruned model's multiply-accumulates; of both runs together where there "
        "were two, which is above 1.",
    )
    runs: int = Field(ge=1, le=2, description="2 where a cascade ran the image again unpruned.")
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


class CascadeDescription(BaseModel):
    """What `cascade` does with this model, as it was calibrated."""

    keep_ratio: float = Field(gt=0, le=1, description="Of the first run.")
    criterion: Criterion | None = Field(description="null with the reducer `merge`, which reads none.")
    reducer: Reducer
    agreement: float = Field(
        gt=0,
        le=1,
        description="Share of images with the unpruned model's first label, as it was wanted when the "
        "cascade was calibrated; it holds for images of the same kind.",
    )
    compute: float = Field(
        gt=0,
        le=2,
        description="Mean share of the unpruned model's multiply-accumulates, over the calibration images.",
    )


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
    reducers: list[Reducer]
    default_keep_ratio: float
    default_criterion: Criterion
    default_reducer: Reducer
    cascade: CascadeDescription | None = Field(description="null where none was calibrated.")
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
    reason: str | None = Field(None, description="Where no engine comes up: why.")
    engines: list[EngineState]
