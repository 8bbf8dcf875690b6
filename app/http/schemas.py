"""The bodies of /v1: requests, answers and problems.

Above 300 lines: most of them are the descriptions and examples that /docs shows.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.inference.options import EmbedOptions, ImageOptions, KeepRatio
from app.messages.image import Lowered
from models.bundled import BUNDLED_MODEL
from models.schedule import Criterion, Reducer
from models.scores import Scores

# An image of 4 x 4 pixels, blue above green, as a PNG in base64. Examples must work and be short.
EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAGElEQVR42mOMmvaMAQaYGJAAy6NHTthlAI2oA+adrSNnAAAAAElF"
    "TkSuQmCC"
)


class JsonImage(ImageOptions):
    """One image with options of its own."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"image": EXAMPLE_IMAGE, "keep_ratio": 0.7, "mask": "grid"}]}
    )

    image: str = Field(
        description="The encoded image (JPEG, PNG, ...) in base64, or a data URL.",
        examples=[EXAMPLE_IMAGE],
    )


class ClassifyRequest(ImageOptions):
    """Several images. Options next to `images` apply to images that do not set them themselves."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "images": [
                        {"image": EXAMPLE_IMAGE, "keep_ratio": 0.9},
                        {"image": EXAMPLE_IMAGE, "compute": 0.6},
                    ],
                    "top_k": 3,
                }
            ]
        }
    )

    images: list[JsonImage] = Field(
        min_length=1, description="Images, answered in this order. The server limits their number."
    )


class Label(BaseModel):
    """A class and its score."""

    index: int = Field(ge=0, description="Index of the class in the model's labels, from 0.", examples=[4])
    label: str = Field(description="The class's name.", examples=["church"])
    score: float = Field(
        ge=0,
        le=1,
        description="Softmax probability. For a multi-label model (`scores` is `sigmoid` in /v1/models), "
        "the probability of this label alone.",
        examples=[0.93],
    )


class Patches(BaseModel):
    """Number of patches before and after pruning."""

    total: int = Field(ge=1, description="Number of patches of the unpruned image.")
    kept: int = Field(ge=1, description="Number left after the last stage.")
    per_stage: list[int] = Field(description="Number left after each stage.")
    grid: tuple[int, int] = Field(description="Rows and columns of the patch grid.")


class StageMask(BaseModel):
    """The kept patches after one stage, in the requested format."""

    block: int = Field(ge=1, description="The block of the stage, counted from 1.")
    indices: list[int] | None = Field(
        None,
        description="Indices of the kept patches in ascending order, from 0, row by row from the top left.",
    )
    grid: list[list[int]] | None = Field(
        None, description="The patch grid, row by row: 1 for every kept patch, 0 for the others."
    )
    png: str | None = Field(
        None, description="The model's input with the pruned patches dimmed: a PNG in base64."
    )


class Applied(BaseModel):
    """The pruning that was applied to one image."""

    keep_ratio: float = Field(
        gt=0,
        le=1,
        description="The applied ratio. With `keep_mass`, the resulting ratio; with a cascade, that of "
        "the first run, or 1 after a second run.",
    )
    requested_keep_ratio: KeepRatio | None = Field(
        description="The requested ratio, given as `keep_ratio` or `compute`; null with `keep_mass` or "
        "`cascade`."
    )
    lowered: Lowered | None = Field(
        description="Why `keep_ratio` is below the requested one: high load (`brown-out`), or to meet "
        "the deadline (`deadline`). null if it is not."
    )
    criterion: Criterion | None = Field(
        description="null with the reducers `merge` and `pool`, which use none."
    )
    reducer: Reducer = Field(description="What happened to the patches that were not kept.")
    patches: Patches = Field(description="Number of patches before and after pruning.")
    compute: float = Field(
        gt=0,
        le=2,
        description="Cost as a share of the unpruned model's multiply-accumulates. After a second run, "
        "the sum of both, which is above 1.",
    )
    runs: int = Field(
        ge=1, le=2, description="2 if a cascade computed the image again without pruning, otherwise 1."
    )
    mask: list[StageMask] | None = Field(
        None, description="Only if requested: after the last stage, or after each stage with `mask_stages`."
    )
    warnings: list[str] | None = Field(
        None,
        description="Warnings about how the image was read. Only present if there are any. Also in the "
        "header Image-Warnings.",
    )
    cached: bool | None = Field(
        None,
        description="true if the answer comes from the answer cache, without decoding or computing. "
        "Otherwise omitted.",
    )


class ImageResult(Applied):
    """The answer for one image."""

    labels: list[Label] = Field(description="The best classes, best first.")


class Timings(BaseModel):
    """Milliseconds; of several images, the longest of each phase."""

    decode: float = Field(ge=0, description="Decoding, cropping and resizing.")
    queue: float = Field(ge=0, description="Waiting for a batch.")
    compute: float = Field(ge=0, description="Computing the batch.")
    total: float = Field(ge=0, description="From the arrival of the request to the response.")


class ClassifyResponse(BaseModel):
    """One result per image, in the order of the request."""

    model: str = Field(description="The model's name.", examples=[BUNDLED_MODEL])
    results: list[ImageResult] = Field(description="One per image.")
    timings_ms: Timings = Field(description="In milliseconds. Also in the header Server-Timing.")


class ClassifyEachResponse(BaseModel):
    """With errors=each, one result or problem per image, in the order of the request."""

    model: str = Field(description="The model's name.", examples=[BUNDLED_MODEL])
    results: "list[ImageResult | ProblemDocument]" = Field(
        description="One per image: its result, or the problem document of its error."
    )
    timings_ms: Timings = Field(
        description="In milliseconds, for the answered images. Also in the header Server-Timing."
    )


class JsonImageToEmbed(EmbedOptions):
    """One image with options of its own."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"image": EXAMPLE_IMAGE, "keep_ratio": 0.7, "normalize": True}]}
    )

    image: str = Field(
        description="The encoded image (JPEG, PNG, ...) in base64, or a data URL.",
        examples=[EXAMPLE_IMAGE],
    )


class EmbedRequest(EmbedOptions):
    """Several images. Options next to `images` apply to images that do not set them themselves."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "images": [
                        {"image": EXAMPLE_IMAGE, "keep_ratio": 0.9},
                        {"image": EXAMPLE_IMAGE, "compute": 0.6},
                    ],
                    "encoding": "base64",
                }
            ]
        }
    )

    images: list[JsonImageToEmbed] = Field(
        min_length=1, description="Images, answered in this order. The server limits their number."
    )


class EmbedResult(Applied):
    """The embedding of one image."""

    embedding: list[float] | str = Field(
        description="The feature vector: a list of float32 numbers, or their bytes in base64, depending "
        "on `encoding`. /v1/models gives its length (`embedding_size`).",
        examples=[[0.25, -1.5, 0.75]],
    )
    labels: list[Label] | None = Field(
        None, description="The best classes, best first. Only present if `top_k` is above 0."
    )


class EmbedResponse(BaseModel):
    """One result per image, in the order of the request."""

    model: str = Field(description="The model's name.", examples=[BUNDLED_MODEL])
    results: list[EmbedResult] = Field(description="One per image.")
    timings_ms: Timings = Field(description="In milliseconds. Also in the header Server-Timing.")


class EmbedEachResponse(BaseModel):
    """With errors=each, one result or problem per image, in the order of the request."""

    model: str = Field(description="The model's name.", examples=[BUNDLED_MODEL])
    results: "list[EmbedResult | ProblemDocument]" = Field(
        description="One per image: its result, or the problem document of its error."
    )
    timings_ms: Timings = Field(
        description="In milliseconds, for the answered images. Also in the header Server-Timing."
    )


class ProblemDocument(BaseModel):
    """An error document (RFC 9457): what was wrong, what is allowed, and what to do."""

    type: str = Field(
        description="Problem type, for programs: urn:trimvit:problem:NAME.",
        examples=["urn:trimvit:problem:invalid-value"],
    )
    title: str = Field(description="Title of the problem type.", examples=["A value is not allowed"])
    status: int = Field(description="The HTTP status.", examples=[422])
    detail: str = Field(
        description="What was wrong, what is allowed, and what to do.",
        examples=["keep_ratio must be a number above 0 and at most 1, or 'auto', such as 0.5; got 1.5"],
    )
    image: int | None = Field(
        None, ge=0, description="Index in the request of the image at fault, from 0.", examples=[0]
    )


class InputInfo(BaseModel):
    """How a photograph becomes the input of the model."""

    height: int = Field(ge=1, description="Height of the input in pixels.", examples=[224])
    width: int = Field(ge=1, description="Width of the input in pixels.", examples=[224])
    interpolation: str = Field(description="How images are resized.", examples=["bicubic"])
    crop: str = Field(
        description="`center`: the largest centered box with the aspect ratio of the input; `squash`: "
        "the whole image, without keeping its aspect ratio.",
        examples=["center"],
    )
    crop_share: float = Field(
        gt=0,
        le=1,
        description="Share of each side of that box that is used, around the center.",
        examples=[0.9],
    )


class CascadeDescription(BaseModel):
    """The cascade of this model, as calibrated."""

    keep_ratio: float = Field(gt=0, le=1, description="Of the first run.")
    criterion: Criterion | None = Field(
        description="null with the reducers `merge` and `pool`, which use none."
    )
    reducer: Reducer = Field(description="What happens to the patches that the first run does not keep.")
    agreement: float = Field(
        gt=0,
        le=1,
        description="Share of images with the same top label as the unpruned model, as required when the "
        "cascade was calibrated. It holds for images of the same kind.",
    )
    compute: float = Field(
        gt=0,
        le=2,
        description="Mean cost over the calibration images, as a share of the unpruned model's "
        "multiply-accumulates.",
    )


class ModelDescription(BaseModel):
    """A model that is served."""

    name: str = Field(description="Its name.", examples=[BUNDLED_MODEL])
    labels: list[str] = Field(
        description="Names of the classes, in the order of `index`. Empty for a model without a head, "
        "which only supports /v1/embed."
    )
    embedding_size: int = Field(ge=1, description="Length of an embedding.", examples=[384])
    input: InputInfo = Field(description="How a photograph becomes the input of the model.")
    patches: int = Field(ge=1, description="Number of patches of an unpruned image.", examples=[256])
    grid: tuple[int, int] = Field(description="Rows and columns of the patch grid.")
    patch_size: tuple[int, int] = Field(description="Height and width of a patch, in pixels of the input.")
    patch_stride: tuple[int, int] = Field(
        description="Distance between neighboring patches in pixels, vertical and horizontal. If smaller "
        "than the patch size, patches overlap."
    )
    stages: list[int] = Field(description="Blocks that prune, counted from 1.")
    evenly: bool = Field(
        description="Whether every stage removes the same number of patches. Otherwise each keeps a share."
    )
    static_blocks: list[int] = Field(
        description="Blocks with static attention, the same for every image, counted from 1."
    )
    cluster_blocks: list[int] = Field(
        description="Blocks in which tokens attend to clusters of patches (PaCa), counted from 1."
    )
    criteria: list[Criterion] = Field(description="Criteria that a request can choose.")
    reducers: list[Reducer] = Field(description="Reducers that a request can choose.")
    default_keep_ratio: float = Field(gt=0, le=1, description="Default of the option.")
    default_criterion: Criterion = Field(description="Default of the option.")
    default_reducer: Reducer = Field(description="Default of the option.")
    default_deadline_ms: int = Field(ge=1, description="Default of the option.", examples=[30_000])
    scores: Scores = Field(
        description="How logits become scores: `softmax` over all classes, or `sigmoid` of each class in "
        "a multi-label model."
    )
    cascade: CascadeDescription | None = Field(description="null if none was calibrated.")
    device: str = Field(description="Device of the computation.", examples=["cpu:0"])
    dtype: str = Field(description="Data type of the computation.", examples=["bfloat16"])


class ModelList(BaseModel):
    """Everything that is served."""

    models: list[ModelDescription] = Field(description="The default one first.")


class WorkerState(BaseModel):
    """One worker, as this front end sees it."""

    ready: bool = Field(description="Whether it has loaded the model and is ready.")
    device: str | None = Field(description="Its device; null until it has loaded the model.")
    images_pending: int = Field(
        ge=0, description="Images that this front end has sent to it and that are not answered yet."
    )


class Readiness(BaseModel):
    """Whether images are answered, and by which workers."""

    status: Literal["ready", "not ready"] = Field(description="Whether the server is ready to answer images.")
    reason: str | None = Field(
        None, description="Why no worker or decoding process can be started. Otherwise omitted."
    )
    engines: list[WorkerState] = Field(description="Each worker.")
