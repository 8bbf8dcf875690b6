"""Stages as people name them, in place of a model's own."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from models.schedule import Rows, Stages
from models.stage_blocks import Blocks, stages_of
from models.stage_flag import BlocksFlag

SHARES, EVEN = Stages((1, 4), "all"), Stages((0, 1, 2), "cls", evenly=True)


class Flags(BaseModel):
    """Settings with such a flag."""

    stages: BlocksFlag = None


@pytest.mark.parametrize(
    ("blocks", "rows", "own", "wanted"),
    [
        (None, None, SHARES, SHARES),
        (None, None, EVEN, EVEN),
        (None, "cls", SHARES, Stages((1, 4), "cls")),
        (None, "all", EVEN, Stages((0, 1, 2), "all", evenly=True)),
        ((1, 3), None, SHARES, Stages((0, 2), "all")),
        ((1, 2, 3), None, EVEN, Stages((0, 1, 2), "cls")),
        ("every", None, SHARES, Stages((0, 1, 2, 3, 4, 5), "all", evenly=True)),
        ("every", "cls", SHARES, Stages((0, 1, 2, 3, 4, 5), "cls", evenly=True)),
    ],
)
def test_what_is_named_replaces_the_models_own(
    blocks: Blocks | None, rows: Rows | None, own: Stages, wanted: Stages
) -> None:
    """Blocks and rows each by itself; blocks that are named lose a share each, `every` loses evenly."""
    assert stages_of(blocks, rows, own, depth=6) == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("every", "every"),
        (" every ", "every"),
        (["every"], "every"),
        ("4,7", (4, 7)),
        ([4, 7], (4, 7)),
        (4, (4,)),
        (None, None),
    ],
)
def test_a_flag_takes_numbers_or_every(given: Any, wanted: Blocks | None) -> None:
    """As a person types them, or as a file of settings has them."""
    assert Flags(stages=given).stages == wanted


@pytest.mark.parametrize("given", ["each", "0,3", "7,4", "4,4", "every,3", "", 1.5])
def test_anything_else_is_refused(given: Any) -> None:
    """Also a block 0, and blocks that do not ascend."""
    with pytest.raises(ValidationError):
        Flags(stages=given)
