"""The options of an image."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

Criterion = Literal[
    "variance",
    "mad",
    "iqr",
    "mean",
    "mean_value_norm",
    "renyi_half",
    "renyi_1",
    "renyi_2",
    "renyi_inf",
    "column_l2",
    "life",
    "random",
]
Reducer = Literal["drop", "fuse", "merge", "pool", "transform"]
MaskFormat = Literal["none", "indices", "grid", "png"]
Priority = Literal["high", "normal", "batch"]
Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of one image. None leaves the choice to the server, which also checks the values.

    ``keep_ratio``: share of the remaining patches kept at each stage. In its place, ``compute`` (maximum cost
    as a share of the unpruned cost), ``keep_mass`` (share of the image's importance to keep) or ``cascade``
    (a cheap run first, and the unpruned model if the result is uncertain). ``deadline_ms`` is the deadline
    for the server; a client's ``deadline_s`` also covers transmission and retries, and sets it.
    ``min_keep_ratio``: the lowest ratio to which the server may go under load. With a ratio of `auto`, the
    server chooses it by ``deadline_ms``. ``model``: the name of one of the server's models; the first one by
    default. ``more``: options that this client does not know yet.
    """

    model: str | None = None
    keep_ratio: float | Literal["auto"] | None = None
    compute: float | None = None
    keep_mass: float | None = None
    cascade: bool | None = None
    criterion: Criterion | None = None
    reducer: Reducer | None = None
    top_k: int | None = None
    mask: MaskFormat | None = None
    mask_stages: bool | None = None
    seed: int | None = None
    min_keep_ratio: float | None = None
    priority: Priority | None = None
    deadline_ms: int | None = None
    more: Mapping[str, Scalar] = field(default_factory=dict)

    def query(self) -> dict[str, str]:
        """The given options, as the parameters of a URL."""
        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "more"}
        return {name: _text(value) for name, value in {**given, **self.more}.items() if value is not None}


def _text(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
