"""The bodies of /v1: requests, answers and problems.

Above 300 lines: most of them are the descriptions and examples that /docs shows.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.inference.options import EmbedOptions, ImageOptions, KeepRatio
from app.messages.image import Lowered
from models.schedule import Criterion, Reducer
from models.scores import Scores

# A picture of 4 x 4 pixels, blue above green, as PNG in base64: examples must work, and be short.
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
        description="The encoded image (JPEG, PNG, ...), in base64; a data URL is taken too.",
        examples=[EXAMPLE_IMAGE],
    )


class ClassifyRequest(ImageOptions):
    """Many images, each with its own options; options beside `images` hold for those that say nothing."""

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
        min_length=1, description="Answered in this order; how many at most, the server's settings say."
    )


class Label(BaseModel):
    """A class and its score."""

    index: int = Field(ge=0, description="Place of the class among the model's labels, from 0.", examples=[4])
    label: str = Field(description="The class's name.", examples=["church"])
    score: float = Field(
        ge=0,
        le=1,
        description="Softmax probability; of a model with several labels an image (`scores`: `sigmoid` in "
        "/v1/models), that of this label by itself.",
        examples=[0.93],
    )


class Patches(BaseModel):
    """How many patches were there and how many were kept."""

    total: int = Field(ge=1, description="Patches of the unpruned image.")
    kept: int = Field(ge=1, description="After the last stage.")
    per_stage: list[int] = Field(description="Left after each stage.")
    grid: tuple[int, int] = Field(description="Rows and columns of the patch grid.")


class StageMask(BaseModel):
    """The kept patches after one stage, in the format that was asked for."""

    block: int = Field(ge=1, description="The block of the stage, counted from 1.")
    indices: list[int] | None = Field(
        None, description="Numbers of the kept patches, ascending, from 0, row by row from the top left."
    )
    grid: list[list[int]] | None = Field(
        None, description="The patch grid, row by row: 1 for every kept patch, 0 for the others."
    )
    png: str | None = Field(
        None, description="What the model saw, with the pruned patches dimmed: a PNG in base64."
    )


class Applied(BaseModel):
    """What was applied to one image."""

    keep_ratio: float = Field(
        gt=0,
        le=1,
        description="The ratio that was applied: with `keep_mass`, what it came to; of a cascade, the first "
        "run's, or 1 where there was a second.",
    )
    requested_keep_ratio: KeepRatio | None = Field(
        description="The ratio that was asked for, itself or as a compute; null with `keep_mass` or "
        "`cascade`."
    )
    lowered: Lowered | None = Field(
        description="Why `keep_ratio` is below the requested one: too much was waiting (`brown-out`), or it "
        "would have been late (`deadline`). null where it is not."
    )
    criterion: Criterion | None = Field(description="null with the reducer `merge`, which reads none.")
    reducer: Reducer = Field(description="What became of the patches that were not kept.")
    patches: Patches = Field(description="How many patches were there and how many were kept.")
    compute: float = Field(
        gt=0,
        le=2,
        description="Share of the unpruned model's multiply-accumulates; of both runs together where there "
        "were two, which is above 1.",
    )
    runs: int = Field(ge=1, le=2, description="2 where a cascade ran the image again unpruned.")
    mask: list[StageMask] | None = Field(
        None, description="Where one was asked for: after the last stage, or after each with `mask_stages`."
    )
    warnings: list[str] | None = Field(
        None,
        description="What the sender should know of how the image was read; only where there is something "
        "to say. The header Image-Warnings says the same.",
    )
    cached: bool | None = Field(
        None,
        description="true where the answer comes from the answer cache: nothing was decoded or computed. "
        "Else left out.",
    )


class ImageResult(Applied):
    """The answer for one image."""

    labels: list[Label] = Field(description="The best classes, best first.")


class Timings(BaseModel):
    """Milliseconds; of several images, the longest of each phase."""

    decode: float = Field(ge=0, description="Decoding, cropping and resizing.")
    queue: float = Field(ge=0, description="Waiting for a batch.")
    compute: float = Field(ge=0, description="The batch's run through the model.")
    total: float = Field(ge=0, description="From the request's arrival to its answer.")


class ClassifyResponse(BaseModel):
    """One result per image, in the order of the request."""

    model: str = Field(description="The model's name.", examples=["trimvit-small-imagenette"])
    results: list[ImageResult] = Field(description="One per image.")
    timings_ms: Timings = Field(description="Milliseconds; the header Server-Timing says the same.")


class ClassifyEachResponse(BaseModel):
    """With errors=each, one result or problem per image, in the order of the request."""

    model: str = Field(description="The model's name.", examples=["trimvit-small-imagenette"])
    results: "list[ImageResult | ProblemDocument]" = Field(
        description="One per image: its result, or the problem that it alone would have been refused with."
    )
    timings_ms: Timings = Field(
        description="Milliseconds, of the answered images; the header Server-Timing says the same."
    )


class JsonImageToEmbed(EmbedOptions):
    """One image with options of its own."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"image": EXAMPLE_IMAGE, "keep_ratio": 0.7, "normalize": True}]}
    )

    image: str = Field(
        description="The encoded image (JPEG, PNG, ...), in base64; a data URL is taken too.",
        examples=[EXAMPLE_IMAGE],
    )


class EmbedRequest(EmbedOptions):
    """Many images, each with its own options; options beside `images` hold for those that say nothing."""

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
        min_length=1, description="Answered in this order; how many at most, the server's settings say."
    )


class EmbedResult(Applied):
    """The embedding of one image."""

    embedding: list[float] | str = Field(
        description="The feature vector: a list of float32 numbers, or their bytes in base64, as `encoding` "
        "says. /v1/models says how many numbers it has (`embedding_size`).",
        examples=[[0.25, -1.5, 0.75]],
    )
    labels: list[Label] | None = Field(
        None, description="The best classes, best first; only where `top_k` is above 0."
    )


class EmbedResponse(BaseModel):
    """One result per image, in the order of the request."""

    model: str = Field(description="The model's name.", examples=["trimvit-small-imagenette"])
    results: list[EmbedResult] = Field(description="One per image.")
    timings_ms: Timings = Field(description="Milliseconds; the header Server-Timing says the same.")


class EmbedEachResponse(BaseModel):
    """With errors=each, one result or problem per image, in the order of the request."""

    model: str = Field(description="The model's name.", examples=["trimvit-small-imagenette"])
    results: "list[EmbedResult | ProblemDocument]" = Field(
        description="One per image: its result, or the problem that it alone would have been refused with."
    )
    timings_ms: Timings = Field(
        description="Milliseconds, of the answered images; the header Server-Timing says the same."
    )


class ProblemDocument(BaseModel):
    """RFC 9457: what was wrong and what is allowed."""

    type: str = Field(
        description="What kind of problem, for programs: urn:trimvit:problem:NAME.",
        examples=["urn:trimvit:problem:invalid-value"],
    )
    title: str = Field(description="The kind in words.", examples=["A value is not allowed"])
    status: int = Field(description="The HTTP status.", examples=[422])
    detail: str = Field(
        description="What was wrong and what is allowed.",
        examples=["keep_ratio must be a number above 0 and at most 1, or 'auto', such as 0.5; got 1.5"],
    )
    image: int | None = Field(
        None, ge=0, description="Place in the request of the image at fault, from 0.", examples=[0]
    )


class InputInfo(BaseModel):
    """What the model sees of a photograph."""

    height: int = Field(ge=1, description="Rows of pixels that the model sees.", examples=[224])
    width: int = Field(ge=1, description="Columns of pixels that the model sees.", examples=[224])
    interpolation: str = Field(description="How images are resized.", examples=["bicubic"])
    crop: str = Field(
        description="`center`: the largest box of the input's proportions, in the middle; `squash`: the "
        "whole image, whatever its proportions.",
        examples=["center"],
    )
    crop_share: float = Field(
        gt=0, le=1, description="Share of each side of that box that is seen, its middle.", examples=[0.9]
    )


class CascadeDescription(BaseModel):
    """What `cascade` does with this model, as it was calibrated."""

    keep_ratio: float = Field(gt=0, le=1, description="Of the first run.")
    criterion: Criterion | None = Field(description="null with the reducer `merge`, which reads none.")
    reducer: Reducer = Field(description="What becomes of the patches that the first run does not keep.")
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

    name: str = Field(description="Its name.", examples=["trimvit-small-imagenette"])
    labels: list[str] = Field(
        description="Names of the classes; a label's `index` is its place here. Empty for a model without a "
        "head, which answers /v1/embed only."
    )
    embedding_size: int = Field(ge=1, description="Numbers of an embedding.", examples=[384])
    input: InputInfo = Field(description="What the model sees of a photograph.")
    patches: int = Field(ge=1, description="Patches of an image, unpruned.", examples=[256])
    grid: tuple[int, int] = Field(description="Rows and columns of the patch grid.")
    patch_size: tuple[int, int] = Field(description="Height and width of a patch in the input, in pixels.")
    patch_stride: tuple[int, int] = Field(
        description="Pixels from one patch to the next, down and across; below the size, patches overlap."
    )
    stages: list[int] = Field(description="Blocks that prune, counted from 1.")
    evenly: bool = Field(
        description="Whether every stage takes away as many patches as any other; else each keeps a share."
    )
    criteria: list[Criterion] = Field(description="Criteria that may be asked for.")
    reducers: list[Reducer] = Field(description="Reducers that may be asked for.")
    default_keep_ratio: float = Field(gt=0, le=1, description="Of images that ask for none.")
    default_criterion: Criterion = Field(description="Of images that ask for none.")
    default_reducer: Reducer = Field(description="Of images that ask for none.")
    default_deadline_ms: int = Field(ge=1, description="Of images that ask for none.", examples=[30_000])
    scores: Scores = Field(
        description="What makes logits scores: `softmax` over all classes, or `sigmoid` of each by itself, "
        "where several labels may be true of an image."
    )
    cascade: CascadeDescription | None = Field(description="null where none was calibrated.")
    device: str = Field(description="Where it is computed.", examples=["cpu:0"])
    dtype: str = Field(description="What it is computed in.", examples=["bfloat16"])


class ModelList(BaseModel):
    """Everything that is served."""

    models: list[ModelDescription] = Field(description="The default one first.")


class WorkerState(BaseModel):
    """One worker, as this front end sees it."""

    ready: bool = Field(description="Whether it has loaded the model and answers.")
    device: str | None = Field(description="Where it computes; null until it has loaded the model.")
    images_pending: int = Field(ge=0, description="Images that this front end waits for from it.")


class Readiness(BaseModel):
    """Whether images are answered, and by which workers."""

    status: Literal["ready", "not ready"] = Field(description="Whether images are answered.")
    reason: str | None = Field(
        None, description="Where no worker, or nothing that decodes images, comes up: why."
    )
    engines: list[WorkerState] = Field(description="Each worker.")
