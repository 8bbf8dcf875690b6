"""The server's answers, as frozen records.

Members that a newer server adds are ignored; a missing one is an UnexpectedAnswer.

Above 300 lines: a record for everything that the server answers, each with a description of its members.
"""

import base64
import io
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trimvit_client.errors import Problem, problem_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image as Pictures


@dataclass(frozen=True, slots=True)
class Label:
    """A class and its score, from 0 to 1."""

    index: int
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Patches:
    """The number of patches in total and kept: after the last stage, and after each. ``grid`` is rows and
    columns."""

    total: int
    kept: int
    per_stage: tuple[int, ...]
    grid: tuple[int, int]


@dataclass(frozen=True, slots=True)
class StageMask:
    """The kept patches after the stage in ``block`` (from 1), in the requested format."""

    block: int
    grid_size: tuple[int, int]
    indices: tuple[int, ...] | None = None
    grid: tuple[tuple[int, ...], ...] | None = None
    png: bytes | None = None

    def array(self) -> "NDArray[np.bool_]":
        """[rows, columns], True for each patch that was kept. Raises ValueError for the format `png`, which
        has no numbers, and ImportError without numpy."""
        try:
            import numpy as np
        except ImportError as error:
            raise ImportError(_WITHOUT.format("numpy")) from error

        if self.grid is not None:
            return np.array(self.grid, bool)
        if self.indices is None:
            raise ValueError("a mask as png has no numbers; ask with mask='grid' or mask='indices'")
        cells = np.zeros(self.grid_size, bool)
        cells.flat[list(self.indices)] = True
        return cells

    def picture(self) -> "Pictures.Image":
        """The input of the model with the pruned patches dimmed. Raises ValueError for another format than
        `png`, and ImportError without Pillow."""
        if self.png is None:
            raise ValueError("only a mask as png is a picture; ask with mask='png'")
        try:
            from PIL import Image as Pictures
        except ImportError as error:
            raise ImportError(_WITHOUT.format("Pillow")) from error
        return Pictures.open(io.BytesIO(self.png))


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds in the server."""

    decode: float
    queue: float
    compute: float
    total: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer for one image: labels, best first, and the pruning that was applied.

    ``compute`` is its cost as a share of the unpruned model's multiply-accumulates, of both runs if ``runs``
    is 2. ``criterion`` is None with the reducers `merge` and `pool`, which use none. ``lowered`` says why
    ``keep_ratio`` is below ``requested_keep_ratio``, if it is (None with `keep_mass` or a cascade). ``mask``
    is empty if none was requested. ``cached``: it comes from the server's answer cache.
    """

    model: str
    labels: tuple[Label, ...]
    keep_ratio: float
    requested_keep_ratio: float | Literal["auto"] | None
    lowered: str | None
    criterion: str | None
    reducer: str
    patches: Patches
    compute: float
    runs: int
    mask: tuple[StageMask, ...]
    timings_ms: Timings
    request_id: str | None
    cached: bool = False

    @property
    def best(self) -> Label:
        """The label with the highest score."""
        return self.labels[0]


@dataclass(frozen=True, slots=True)
class Embedding:
    """The feature vector of one image, and the pruning that was applied: see `Classification`. ``labels`` are
    only there if the options have a ``top_k``."""

    model: str
    values: tuple[float, ...]
    labels: tuple[Label, ...]
    keep_ratio: float
    requested_keep_ratio: float | Literal["auto"] | None
    lowered: str | None
    criterion: str | None
    reducer: str
    patches: Patches
    compute: float
    runs: int
    timings_ms: Timings
    request_id: str | None
    cached: bool = False

    def array(self) -> "NDArray[np.float32]":
        """The values. Raises ImportError without numpy."""
        try:
            import numpy as np
        except ImportError as error:
            raise ImportError(_WITHOUT.format("numpy")) from error

        return np.array(self.values, np.float32)


@dataclass(frozen=True, slots=True)
class Input:
    """The input of the model for a photograph, in pixels."""

    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Cascade:
    """The cascade of a model: its first run, and the agreement with the unpruned model's labels and the mean
    compute for which it was calibrated."""

    keep_ratio: float
    criterion: str | None
    reducer: str
    agreement: float
    compute: float


@dataclass(frozen=True, slots=True)
class Model:
    """A served model, and its defaults. ``scores``: "softmax" over all classes, or "sigmoid" of each class.
    ``evenly``: whether every stage removes the same number of patches. ``embedding_size``: the length of an
    embedding. Without a head, it has no ``labels``. ``criteria`` and ``reducers``: those that a request can
    choose. ``static_blocks`` and ``cluster_blocks``: blocks with static attention, and with attention to
    clusters of patches (from 1, as ``stages``). Older servers do not send all of this: then
    ``embedding_size`` and ``default_deadline_ms`` are None, and the lists are empty."""

    name: str
    labels: tuple[str, ...]
    input: Input
    patches: int
    grid: tuple[int, int]
    stages: tuple[int, ...]
    default_keep_ratio: float
    default_criterion: str
    default_reducer: str
    cascade: Cascade | None
    device: str
    dtype: str
    scores: str = "softmax"
    evenly: bool = False
    embedding_size: int | None = None
    default_deadline_ms: int | None = None
    criteria: tuple[str, ...] = ()
    reducers: tuple[str, ...] = ()
    static_blocks: tuple[int, ...] = ()
    cluster_blocks: tuple[int, ...] = ()


def classification_of(document: Mapping[str, Any], request_id: str | None) -> Classification:
    """The classification in an answer with one result. Raises KeyError, TypeError or ValueError if it is not
    valid, and the Problem that may be in its place."""
    (result,) = results_of(document, request_id)
    if isinstance(result, Problem):
        raise result
    return result


def results_of(document: Mapping[str, Any], request_id: str | None) -> tuple[Classification | Problem, ...]:
    """The results and problems in an answer. Raises KeyError, TypeError or ValueError if it is not valid."""
    return tuple(
        problem_of(int(result["status"]), result, request_id, None)
        if "status" in result
        else _classification(document, result, request_id)
        for result in document["results"]
    )


def _classification(
    document: Mapping[str, Any], result: Mapping[str, Any], request_id: str | None
) -> Classification:
    grid = _pair(result["patches"]["grid"])
    return Classification(
        mask=tuple(_mask_of(each, grid) for each in result.get("mask") or ()),
        request_id=request_id,
        **_common(document, result, grid, result["labels"]),
    )


def embedding_of(document: Mapping[str, Any], request_id: str | None) -> Embedding:
    """The embedding in an answer with one result, in base64. Raises KeyError, TypeError or ValueError if it
    is not valid."""
    (result,) = document["results"]
    grid = _pair(result["patches"]["grid"])
    data = base64.b64decode(result["embedding"], validate=True)
    if len(data) % _FLOAT_BYTES:
        raise ValueError(f"{len(data)} bytes are no float32 numbers")
    return Embedding(
        values=struct.unpack(f"<{len(data) // _FLOAT_BYTES}f", data),
        request_id=request_id,
        **_common(document, result, grid, result.get("labels") or ()),
    )


def _common(
    document: Mapping[str, Any], result: Mapping[str, Any], grid: tuple[int, int], labels: Iterable[Any]
) -> dict[str, Any]:
    """The members that every result of an image has."""
    timings, patches = document["timings_ms"], result["patches"]
    return {
        "model": str(document["model"]),
        "labels": tuple(
            Label(int(each["index"]), str(each["label"]), float(each["score"])) for each in labels
        ),
        "keep_ratio": float(result["keep_ratio"]),
        "requested_keep_ratio": result["requested_keep_ratio"],
        "lowered": result["lowered"],
        "criterion": result["criterion"],
        "reducer": str(result["reducer"]),
        "patches": Patches(int(patches["total"]), int(patches["kept"]), tuple(patches["per_stage"]), grid),
        "compute": float(result["compute"]),
        "runs": int(result["runs"]),
        "cached": bool(result.get("cached", False)),
        "timings_ms": Timings(*(float(timings[name]) for name in ("decode", "queue", "compute", "total"))),
    }


def models_of(document: Mapping[str, Any]) -> tuple[Model, ...]:
    """The models in an answer of /v1/models. Raises KeyError, TypeError or ValueError if it is not valid."""
    return tuple(
        Model(
            name=str(each["name"]),
            labels=tuple(each["labels"]),
            input=Input(int(each["input"]["height"]), int(each["input"]["width"])),
            patches=int(each["patches"]),
            grid=_pair(each["grid"]),
            stages=tuple(each["stages"]),
            default_keep_ratio=float(each["default_keep_ratio"]),
            default_criterion=str(each["default_criterion"]),
            default_reducer=str(each["default_reducer"]),
            cascade=None if each["cascade"] is None else _cascade_of(each["cascade"]),
            device=str(each["device"]),
            dtype=str(each["dtype"]),
            scores=str(each.get("scores", "softmax")),
            evenly=bool(each.get("evenly", False)),
            embedding_size=each.get("embedding_size"),
            default_deadline_ms=each.get("default_deadline_ms"),
            criteria=tuple(each.get("criteria", ())),
            reducers=tuple(each.get("reducers", ())),
            static_blocks=tuple(each.get("static_blocks", ())),
            cluster_blocks=tuple(each.get("cluster_blocks", ())),
        )
        for each in document["models"]
    )


@dataclass(frozen=True, slots=True)
class RepositoryModel:
    """A model that is served or may be loaded. ``state``: READY, LOADING, UNLOADING or UNAVAILABLE (not
    loaded). ``reason``: why it could not be loaded, otherwise empty."""

    name: str
    state: str
    reason: str = ""


def repository_of(document: Iterable[Mapping[str, Any]]) -> tuple[RepositoryModel, ...]:
    """The models in an answer of /v2/repository/index. Raises KeyError or TypeError if it is not valid."""
    return tuple(
        RepositoryModel(str(each["name"]), str(each["state"]), str(each["reason"])) for each in document
    )


def _cascade_of(document: Mapping[str, Any]) -> Cascade:
    return Cascade(
        keep_ratio=float(document["keep_ratio"]),
        criterion=document["criterion"],
        reducer=str(document["reducer"]),
        agreement=float(document["agreement"]),
        compute=float(document["compute"]),
    )


def _mask_of(document: Mapping[str, Any], grid_size: tuple[int, int]) -> StageMask:
    indices, grid, png = (document.get(name) for name in ("indices", "grid", "png"))
    return StageMask(
        block=int(document["block"]),
        grid_size=grid_size,
        indices=None if indices is None else tuple(indices),
        grid=None if grid is None else tuple(map(tuple, grid)),
        png=None if png is None else base64.b64decode(png, validate=True),
    )


def _pair(values: Any) -> tuple[int, int]:
    rows, columns = values
    return int(rows), int(columns)


_FLOAT_BYTES = 4
_WITHOUT = "this needs {}: pip install 'trimvit-client[pictures]'"
