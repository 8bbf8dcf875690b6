"""Stand-ins that the tests of `app` share: a model without weights, a dispatcher that answers by rule."""

import asyncio
import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
from PIL import Image

from app.decoding.pool import InExecutor
from app.dispatch.client import Expected, Question, Slot
from app.errors import NotReady, Problem
from app.messages.image import Lowered, Prediction
from app.messages.model import ModelInfo
from app.messages.repository import ModelEntry
from app.messages.to_front_end import Answer
from models.cascade import Cascade, second_run_compute
from models.schedule import (
    CRITERIA,
    REDUCERS,
    UNPRUNED,
    Architecture,
    Method,
    Pruning,
    Stages,
    compute,
    keep_count,
    keep_counts,
)
from models.transforms import InputSpec

# Every axis has its own size, so that a swapped one cannot pass: 3 x 5 patches of 7 x 7 pixels, 11 classes,
# stages in the second and the fourth of six blocks.
MODEL = ModelInfo(
    name="toy",
    labels=tuple(f"label {index}" for index in range(11)),
    input=InputSpec((21, 35), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", "center", 1.0),
    architecture=Architecture(
        depth=6, dim=22, mlp_dim=33, grid=(3, 5), prefix_tokens=2, patch_inputs=147, classes=11
    ),
    method=Method(Stages((1, 3), "cls"), "mean", "drop"),
    cascade=Cascade(0.5, "iqr", "fuse", margin=0.375, agreement=0.99, images=200, compute=0.8125),
    patch_size=(7, 7),
    patch_stride=(7, 7),
    device="cpu:0",
    dtype="float32",
    features=22,
    criteria=CRITERIA,
    reducers=REDUCERS,
)
# The same network without its head.
HEADLESS = msgspec.structs.replace(
    MODEL, name="headless", labels=(), cascade=None, architecture=replace(MODEL.architecture, classes=0)
)

# The feature vectors that the stand-ins give: exact in float32.
FEATURES = tuple(0.5 * index - 3 for index in range(22))

# Another one, whose images are larger and cost four times as much, and which knows seven classes.
LARGER = msgspec.structs.replace(
    MODEL,
    name="larger",
    labels=tuple(f"larger {index}" for index in range(7)),
    input=InputSpec((42, 70), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", "center", 1.0),
    architecture=Architecture(
        depth=6, dim=22, mlp_dim=33, grid=(6, 10), prefix_tokens=2, patch_inputs=147, classes=7
    ),
    cascade=None,
)

# The logits that the stand-ins give: of falling order, and exact in float32.
LOGITS = tuple(2.5 - 0.75 * index for index in range(11))


# The time that every image is said to take.
QUEUE_S, COMPUTE_S = 0.003, 0.007


def applied_ratio(pruning: Pruning) -> float:
    """The keep ratio that the stand-ins prune with: importance is spread evenly over the patches."""
    patches = MODEL.architecture.patches
    return (
        pruning.keep_ratio if pruning.keep_mass is None else keep_count(patches, pruning.keep_mass) / patches
    )


def cost(pruning: Pruning, runs: int = 1) -> float:
    """The share of compute that the stand-ins answer with."""
    arch, stages = MODEL.architecture, MODEL.method.stages
    first = compute(arch, stages, applied_ratio(pruning), pruning.reducer)
    return first + (second_run_compute(arch, stages) if runs == 2 else 0)


def kept_patches(keep_ratio: float) -> tuple[list[int], ...]:
    """What the stand-ins keep after each stage: the last patches, counted by the rule of models.schedule."""
    patches = MODEL.architecture.patches
    counts = keep_counts(patches, keep_ratio, len(MODEL.method.stages.blocks))
    return tuple(list(range(patches - count, patches)) for count in counts)


def picture(width: int = 40, height: int = 24, colour: tuple[int, int, int] = (200, 100, 50)) -> Image.Image:
    """A photograph to speak of: a gradient over one colour."""
    rows = np.linspace(0.5, 1.0, height)[:, np.newaxis, np.newaxis]
    columns = np.linspace(0.5, 1.0, width)[np.newaxis, :, np.newaxis]
    return Image.fromarray((rows * columns * np.array(colour)).astype(np.uint8))


def encoded(image: Image.Image | None = None, file_format: str = "PNG", **options: object) -> bytes:
    """The image (or some picture) as a file of that format."""
    buffer = io.BytesIO()
    (image or picture()).save(buffer, file_format, **options)
    return buffer.getvalue()


class Asked(Question, frozen=True, kw_only=True):
    """A question with the pixels that it is about."""

    pixels: np.ndarray

    @classmethod
    def about(cls, question: Question, pixels: np.ndarray) -> "Asked":
        return cls(**msgspec.structs.asdict(question), pixels=pixels)


class FakeSlot(Slot):
    """Keeps pixels without shared memory."""

    def __init__(self) -> None:
        self.pixels: np.ndarray | None = None

    @property
    def size(self) -> int:
        return self.copy().nbytes

    def write(self, pixels: np.ndarray) -> None:
        self.pixels = pixels.copy()

    def copy(self) -> np.ndarray:
        assert self.pixels is not None
        return self.pixels


@dataclass
class FakeDispatch:
    """A dispatcher that answers at once, unless told to wait or to fail.

    ``others``: models that it has beside the default one.
    ``becomes``: the model that it gets ``ready_after_s`` after somebody began to wait for it.
    ``fails``: what is raised for every question that ``fails_for`` holds for.
    ``was_ready``: whether it had a ``model`` before it lost it.
    ``takes_its_time``: whether the time that answers name has really passed.
    ``overflows``: whether scores and features are NaN.
    ``refuses``: what is raised before an image is decoded. ``lowers_to``: the ratio that all are lowered to.
    ``unsure``: whether a cascade runs images again. ``repository``: models that may be loaded; ``changes``:
    what was loaded (True) and unloaded; ``change_fails``: what is raised instead.
    """

    model: ModelInfo | None = MODEL
    others: tuple[ModelInfo, ...] = ()
    was_ready: bool = False
    takes_its_time: bool = False
    overflows: bool = False
    fails: BaseException | None = None
    fails_for: Callable[[Asked], bool] = lambda question: True
    wait_for: asyncio.Event | None = None
    unsure: bool = False
    refuses: Problem | None = None
    refuses_early: Problem | None = None
    lowers_to: float | None = None
    questions: list[Asked] = field(default_factory=list)
    expected: list[Expected] = field(default_factory=list)
    asked_early: list[Expected] = field(default_factory=list)
    cancelled: int = 0
    reason: str | None = None
    becomes: ModelInfo | None = None
    ready_after_s: float = 0.0
    waits_s: list[float] = field(default_factory=list)
    repository: tuple[ModelEntry, ...] = ()
    changes: list[tuple[str, bool]] = field(default_factory=list)
    change_fails: Problem | None = None
    used: list[ModelInfo] = field(default_factory=list)

    @property
    def last_model(self) -> ModelInfo | None:
        return MODEL if self.model is None and self.was_ready else self.model

    @property
    def models(self) -> dict[str, ModelInfo]:
        default = self.last_model
        return {} if default is None else {each.name: each for each in (default, *self.others)}

    @property
    def workers(self) -> list[dict[str, object]]:
        ready = self.model is not None
        return [{"ready": ready, "device": "cpu:0" if ready else None, "images_pending": 0}]

    @property
    def trouble(self) -> str | None:
        return self.reason

    async def wait_until_ready(self, within_s: float) -> ModelInfo:
        self.waits_s.append(within_s)
        await asyncio.sleep(self.ready_after_s)
        self.model = self.becomes
        if self.model is None:
            raise NotReady("no worker became ready in time; see /readyz", retry_after_s=1.0)
        return self.model

    def refusal(self, expected: Expected) -> Problem | None:
        self.asked_early.append(expected)
        return self.refuses_early

    @contextmanager
    def expecting(self, expected: Expected) -> Iterator[None]:
        self.expected.append(expected)
        if self.refuses is not None:
            raise self.refuses
        yield

    @contextmanager
    def using(self, model: ModelInfo) -> Iterator[None]:
        self.used.append(model)
        yield

    async def change_model(self, name: str, *, load: bool) -> None:
        if self.change_fails is not None:
            raise self.change_fails
        self.changes.append((name, load))

    @contextmanager
    def slot(self) -> Iterator[Slot]:
        yield FakeSlot()

    async def classify(self, question: Question, slot: Slot) -> Answer:
        number = len(self.questions)
        asked = Asked.about(question, slot.copy())
        self.questions.append(asked)
        if self.wait_for is not None:
            try:
                await self.wait_for.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.fails is not None and self.fails_for(asked):
            raise self.fails
        if self.takes_its_time:
            await asyncio.sleep(QUEUE_S + COMPUTE_S)
        runs = 2 if self.unsure and question.ask.margin is not None else 1
        ratio = applied_ratio(question.ask.pruning if runs == 1 else UNPRUNED)
        ratio = ratio if self.lowers_to is None else self.lowers_to
        kept = kept_patches(ratio)
        top_k = question.ask.top_k
        scores = [0.5 ** (place + 1) for place in range(top_k)]
        features = np.array(FEATURES, "<f4")
        if self.overflows:
            scores, features = [math.nan] * top_k, features * np.float32(math.nan)
        prediction = Prediction(
            classes=list(range(top_k)),
            scores=scores,
            kept_counts=tuple(len(stage) for stage in kept),
            keep_ratio=ratio,
            compute=cost(question.ask.pruning, runs),
            runs=runs,
            kept=tuple(np.array(stage, "<u2").tobytes() for stage in kept if question.ask.kept_patches),
            logits=np.array(LOGITS, "<f4").tobytes() if question.ask.logits else None,
            features=features.tobytes() if question.ask.features else None,
        )
        lowered: Lowered | None = None if self.lowers_to is None else "brown-out"
        return Answer(number, prediction, QUEUE_S, COMPUTE_S, lowered)


class TroubledDecoders(InExecutor):
    """Decodes in threads, and is in the trouble that a test says."""

    trouble: str | None = None

    def look_for_trouble(self) -> str | None:
        return self.trouble
