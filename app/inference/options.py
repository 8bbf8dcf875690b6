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
    """JSON's true and false are no numbers, though Python counts with them."""
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
OF_SEVERAL_IMAGES = ("errors",)  # what /v1 alone has a place for


class ImageOptions(BaseModel):
    """What may be asked of one image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        None,
        description="The model that answers, by its name in /v1/models; all images of a request have the "
        "same. Default: the first one there.",
        examples=[None],
    )
    keep_ratio: KeepRatio | None = Field(
        None,
        description="Share of the remaining patches kept at each stage; 1 prunes nothing. `auto`: the "
        "largest with which the answer is predicted to come by `deadline_ms`, but not below "
        "`min_keep_ratio` (0.3 if not given). Only one of `keep_ratio`, `compute`, `keep_mass` and "
        "`cascade`. Default: the server's (see /v1/models).",
        examples=[0.5],
    )
    compute: Share | None = Field(
        None,
        description="Share of the unpruned model's multiply-accumulates to spend at most; the keep ratio "
        "follows, the same for every image. In place of `keep_ratio`.",
        examples=[None],
    )
    min_keep_ratio: Share | None = Field(
        None,
        description="Allows the server to lower the keep ratio as far as this, under load or to keep "
        "`deadline_ms`, before it refuses anybody; the answer says so in `lowered`. Not with `keep_mass` or "
        "`cascade`.",
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
    top_k: Annotated[int, NoFlag] = Field(5, ge=1, le=1000, description="Labels to answer with, best first.")
    mask: MaskFormat = Field(
        "none",
        description="Which patches were kept: as `indices` (row by row from the top left), as a `grid` of 0 "
        "and 1, or as a `png` of what the model saw with the pruned patches dimmed (base64).",
    )
    mask_stages: bool = Field(
        default=False, description="The mask after every stage, not only after the last."
    )
    seed: Annotated[int, NoFlag] = Field(0, ge=0, lt=2**31, description="Seed of the `random` criterion.")
    deadline_ms: Annotated[int, Field(ge=1, le=600_000), NoFlag] | None = Field(
        None,
        description="The answer is wanted within so many milliseconds: refused at once with 503 if that is "
        "predicted to fail, given up with 504 if it does.",
    )
    priority: Priority = Field(
        "normal",
        description="While images of all three wait, `high` gets 16, `normal` 4 and `batch` 1 of 21 parts of "
        "the worker. A priority above what the server allows the caller is refused with 403.",
    )
    errors: Errors = Field(
        "first",
        description="What an image that cannot be answered does to the others of its request, all of which "
        "have the same value here. `first`: the request is refused with the first problem. `each`: the "
        "others are answered, and its problem takes the place of its result; the status is then 207.",
    )

    @model_validator(mode="after")
    def _only_a_ratio_can_be_lowered(self) -> "ImageOptions":
        given = [name for name in ("keep_mass", "cascade") if getattr(self, name)]
        if self.min_keep_ratio is not None and given:
            raise ValueError(
                f"min_keep_ratio lowers a keep_ratio or compute, and {given[0]} stands in place of both: "
                "leave out one"
            )
        if self.keep_ratio == "auto" and self.deadline_ms is None:
            raise ValueError("keep_ratio auto goes by deadline_ms, which is missing")
        return self

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


class EmbedOptions(ImageOptions):
    """What may be asked of one image whose embedding is wanted."""

    top_k: Annotated[int, NoFlag] = Field(
        0, ge=0, le=1000, description="Labels to answer with beside the embedding, best first; 0: none."
    )
    normalize: bool = Field(
        default=False, description="The embedding divided by its length (L2), so that a product is a cosine."
    )
    encoding: Encoding = Field(
        "float",
        description="The embedding in JSON: a list of numbers (`float`), or the bytes of float32 numbers, "
        "little-endian, in base64 (`base64`).",
    )


def option_schemas(
    without: Collection[str] = (), of: type[ImageOptions] = ImageOptions
) -> dict[str, dict[str, Any]]:
    """The schemas of the options by their names, for where they are no members of a model."""
    properties: dict[str, dict[str, Any]] = of.model_json_schema()["properties"]
    return {name: _without_null(schema) for name, schema in properties.items() if name not in without}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an option in the query or a form, where only JSON can say null."""
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "examples")}
    typed = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    return {**rest, **(typed[0] if typed else {})}
