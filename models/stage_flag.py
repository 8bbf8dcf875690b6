"""`stage_blocks.Blocks` as the type of a flag or an environment variable. No torch: settings use it."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from models.stage_blocks import Blocks


def _listed(value: object) -> object:
    if isinstance(value, str):
        value = value.strip() if value.strip() == "every" else value.split(",")
    if value == ["every"]:  # command-line values always arrive as a list
        return "every"
    return (value,) if isinstance(value, int) else value


def _ascending(blocks: Blocks | None) -> Blocks | None:
    if isinstance(blocks, tuple) and list(blocks) != sorted(set(blocks)):
        raise ValueError("the blocks must be in ascending order, as in 4,7,10")
    return blocks


_Named = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Tag("blocks")]
_Every = Annotated[Literal["every"], Tag("every")]
BlocksFlag = Annotated[
    Annotated[_Named | _Every, Discriminator(lambda value: "every" if value == "every" else "blocks")] | None,
    BeforeValidator(_listed),
    AfterValidator(_ascending),
]
