"""The options of one image."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from app.priority import Priority
from models.schedule import Criterion, Reducer

MaskFormat = Literal["none", "indices", "grid", "png"]
Encoding = Literal["float", "base64"]
Errors = Literal["first", "each"]


def _no_flag(value: object) -> object:
    """Refuses JSON's true and false as numbers, although Python counts with them."""
    if isinstance(value, bool):
        raise PydanticCustomError("no_number", "must be a number")
    return value


NoFlag = BeforeValidator(_no_flag)
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), NoFlag]

KeepRatio = Annotated[
    Annotated[Share, Tag("share")] | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(lambda value: "auto" if value == "auto" else "share"),
]

WAYS_TO_CHOOSE = ("keep_ratio", "compute", "keep_mass", "cascade")
CHOSEN_BY_A_CASCADE = ("criterion", "reducer")
MASK_OPTIONS = ("mask", "mask_stages")
OF_SEVERAL_IMAGES = ("errors",)  # options that only have an effect with several images


class ImageOptions(BaseModel):
    """The options of one image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        None,
        description="Name of the model, as listed in /v1/models; the same for all images of a request. "
        "Default: the first one listed.",
        examples=[None],
    )
    keep_ratio: KeepRatio | None = Field(
        None,
        description="Share of the remaining patches kept at each stage; 1 prunes nothing. `auto`: the "
        "largest ratio that is predicted to meet `deadline_ms`, but not below `min_keep_ratio` "
        "(0.3 if not given). Only one of `keep_ratio`, `compute`, `keep_mass` and `cascade` "
        "can be given. Default: that of the server (see /v1/models).",
        examples=[0.5],
    )
    compute: Share | None = Field(
        None,
        description="Maximum cost, as a share of the unpruned model's multiply-accumulates. The keep ratio "
        "is computed from it and is the same for every image. Cannot be combined with "
        "`keep_ratio`.",
        examples=[None],
    )
    min_keep_ratio: Share | None = Field(
        None,
        description="Lowest keep ratio to which the server may lower this image under load or to meet "
        "`deadline_ms`; `lowered` in the answer says whether it did. Cannot be combined with "
        "`keep_mass` or `cascade`.",
        examples=[None],
    )
    keep_mass: Share | None = Field(
        None,
        description="Share of the image's total importance. The first stage keeps the fewest patches that "
        "contain this share, and the later stages use the resulting keep ratio, so each image "
        "gets its own ratio. Cannot be combined with `keep_ratio` or the reducers `merge` and `pool`.",
        examples=[None],
    )
    cascade: bool = Field(
        default=False,
        description="Computes the image at a low ratio first, and again without pruning if the result is "
        "uncertain, as fitted by `trimvit calibrate` for this checkpoint (see `cascade` in "
        "/v1/models). Cannot be combined with `keep_ratio`, `criterion` or `reducer`.",
        examples=[False],
    )
    criterion: Criterion | None = Field(
        None,
        description="How the importance of a patch is computed. The reducers `merge` and `pool` use no "
        "criterion. `life` needs a model with a life predictor. "
        "Default: that of the server (see /v1/models).",
    )
    reducer: Reducer | None = Field(
        None,
        description="What happens to the patches that are not kept: they are dropped (`drop`), fused into "
        "one token per stage (`fuse`), or merged into the most similar kept patches (`merge`). With "
        "`transform`, each kept patch becomes a weighted mean of all, by similarity. With `pool`, "
        "no patches are kept, but weighted means of all, by learned queries; it needs a model that was "
        "trained with it, and has no mask. "
        "Default: that of the server (see /v1/models).",
        examples=[None],
    )
    top_k: Annotated[int, NoFlag] = Field(
        5, ge=1, le=1000, description="Number of labels in the answer, best first."
    )
    mask: MaskFormat = Field(
        "none",
        description="Format of the mask of kept patches: `indices` (row by row from the top left), a "
        "`grid` of 0 and 1, or a `png` of the model's input with the pruned patches dimmed "
        "(base64).",
    )
    mask_stages: bool = Field(
        default=False, description="Return the mask after every stage instead of only after the last."
    )
    seed: Annotated[int, NoFlag] = Field(0, ge=0, lt=2**31, description="Seed of the `random` criterion.")
    deadline_ms: Annotated[int, Field(ge=1, le=600_000), NoFlag] | None = Field(
        None,
        description="Time within which the answer is needed, in milliseconds. The request is refused at "
        "once with 503 if it is predicted to miss the deadline, and with 504 if it misses it.",
    )
    priority: Priority = Field(
        "normal",
        description="Priority in the queue. While images of all three priorities wait, `high` gets 16, "
        "`normal` 4 and `batch` 1 of 21 parts of the compute time. A priority higher than the "
        "caller is allowed is refused with 403.",
    )
    errors: Errors = Field(
        "first",
        description="What happens if one of several images cannot be answered. `first`: the request is "
        "refused with the first problem. `each`: the other images are answered, the problem is "
        "in the place of the result, and the status is 207. The same for all images of a "
        "request.",
    )

    @model_validator(mode="after")
    def _only_a_ratio_can_be_lowered(self) -> "ImageOptions":
        given = [name for name in ("keep_mass", "cascade") if getattr(self, name)]
        if self.min_keep_ratio is not None and given:
            raise ValueError(
                f"min_keep_ratio only applies to keep_ratio and compute, not to {given[0]}: leave one of "
                "them out"
            )
        if self.keep_ratio == "auto" and self.deadline_ms is None:
            raise ValueError("keep_ratio auto requires deadline_ms")
        return self

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> "ImageOptions":
        given = [name for name in WAYS_TO_CHOOSE if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"give only one of {', '.join(WAYS_TO_CHOOSE)}; got {' and '.join(given)}")
        beside = [name for name in CHOSEN_BY_A_CASCADE if getattr(self, name) is not None]
        if self.cascade and beside:
            raise ValueError(
                "a cascade uses the criterion and the reducer with which it was calibrated: leave out "
                f"{' and '.join(beside)}, or cascade"
            )
        return self


class EmbedOptions(ImageOptions):
    """The options of one image whose embedding is requested."""

    top_k: Annotated[int, NoFlag] = Field(
        0, ge=0, le=1000, description="Number of labels to return with the embedding, best first. 0: none."
    )
    normalize: bool = Field(
        default=False,
        description="Divide the embedding by its length (L2 norm), so that dot products are cosine "
        "similarities.",
    )
    encoding: Encoding = Field(
        "float",
        description="Encoding of the embedding in JSON: a list of numbers (`float`), or little-endian "
        "float32 bytes in base64 (`base64`).",
    )


def option_schemas(
    without: Collection[str] = (), of: type[ImageOptions] = ImageOptions
) -> dict[str, dict[str, Any]]:
    """The schemas of the options by name, for places where they are not members of a model."""
    properties: dict[str, dict[str, Any]] = of.model_json_schema()["properties"]
    return {name: _without_null(schema) for name, schema in properties.items() if name not in without}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an option in a query or a form. Only JSON has null."""
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "examples")}
    typed = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    return {**rest, **(typed[0] if typed else {})}
