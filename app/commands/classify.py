"""`trimvit classify`: photographs in, labels out, without a server.

Decoding, limits, options and the form of a result are the server's own, so both say the same in the same
words.
"""

import base64
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tqdm import tqdm

from app.commands.failures import FAILED, UsageError, complain, tells_what_was_foreseen
from app.commands.fields import same_as
from app.commands.photographs import Photograph, find
from app.commands.pictures import PictureFiles
from app.decoding.images import ImageLimits, ModelInput, decode
from app.engine.client import Classified
from app.engine.messages import Answer, ModelInfo
from app.errors import InternalFault, InvalidValue, Problem, UnreadableRequest
from app.inference.options import ImageOptions, MaskFormat, Share
from app.inference.resolved_options import ResolvedOptions, resolve
from app.inference.results import check_numbers, image_result
from app.settings.settings import Settings
from app.settings.truncated_images import TruncatedImages
from app.settings.types import Blocks
from models.dtypes import DtypeName
from models.names import in_words, shown
from models.pictures import cells_of, dimmed
from models.schedule import Criterion, Reducer, Rows

if TYPE_CHECKING:
    from models.classifier import Classifier

# The options of a request under the same name here. `mask` is a file here and `mask_format` the option; what
# is about waiting (`deadline_ms`) means nothing without a server.
_OF_A_REQUEST = (
    *("keep_ratio", "compute", "keep_mass", "cascade", "criterion", "reducer"),
    *("top_k", "mask_stages", "seed"),
)
_DECODERS = 2  # threads; decoding is a fraction of the computing
_WIDEST_NAME = 48  # characters

_OF_THE_MODEL = ("model", "architecture", "patch_stride", "labels", "stages", "rows", "device", "dtype")


class ClassifyConfig(BaseModel):
    """Label photographs without a server: the model is loaded once and computes them in batches.

    Each may be a file, a folder of images or - for one image from standard input. The options are those of
    POST /v1/classify."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_ratio: Share | None = Field(
        None,
        description="Share of the remaining patches kept at each stage; 1 prunes nothing. Only one of "
        "`keep_ratio`, `compute`, `keep_mass` and `cascade`. Default: 1.",
    )
    compute: Share | None = same_as(ImageOptions, "compute")
    keep_mass: Share | None = same_as(ImageOptions, "keep_mass")
    cascade: bool = Field(
        default=False,
        description="A cheap run first, and the unpruned model where that is unsure, both as `trimvit "
        "calibrate` fitted them for this checkpoint. In place of `keep_ratio`; not with `criterion` or "
        "`reducer`.",
    )
    criterion: Criterion | None = same_as(ImageOptions, "criterion", default_is="the checkpoint's")
    reducer: Reducer | None = same_as(ImageOptions, "reducer", default_is="the checkpoint's")
    top_k: int = same_as(ImageOptions, "top_k")
    seed: int = same_as(ImageOptions, "seed")

    as_json: bool = Field(
        default=False,
        validation_alias="json",
        description="A line of JSON for each photograph, in the form of the server's results; one that could "
        "not be answered has a `problem`.",
    )
    mask: Path | None = Field(
        None,
        description="Save what the model saw with the pruned patches dimmed: a file for one photograph, a "
        "folder for several.",
    )
    mask_format: MaskFormat = Field(
        "none", description="Also put the kept patches into the lines of --json, as over HTTP."
    )
    mask_stages: bool = Field(
        default=False,
        description="The mask after every stage, not only after the last; in the picture side by side.",
    )

    model: str = same_as(Settings, "model")
    architecture: str | None = same_as(Settings, "architecture")
    patch_stride: int | None = same_as(Settings, "patch_stride")
    labels: Path | None = same_as(Settings, "labels")
    stages: Blocks = same_as(Settings, "stages")
    rows: Rows | None = same_as(Settings, "rows")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto (the first GPU, else the CPU), cpu or cuda:N.",
    )
    dtype: DtypeName = same_as(Settings, "dtype")
    batch_size: int = Field(16, ge=1, description="Images computed together.")
    max_image_pixels: int = same_as(Settings, "max_image_pixels")
    truncated_images: TruncatedImages = same_as(Settings, "truncated_images")

    @model_validator(mode="after")
    def _go_together(self) -> "ClassifyConfig":
        _ = self.options
        if self.mask_format != "none" and not self.as_json:
            raise ValueError(
                "--mask-format is for the lines of --json: give both, or --mask FILE for a picture"
            )
        if self.mask_stages and self.mask is None and self.mask_format == "none":
            raise ValueError("--mask-stages needs --mask or --mask-format")
        return self

    @property
    def options(self) -> ImageOptions:
        """What is asked of each image. Raises ValueError for options that exclude each other, in the words of
        HTTP."""
        try:
            return ImageOptions(
                **{name: getattr(self, name) for name in _OF_A_REQUEST}, mask=self.mask_format
            )
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error

    @property
    def settings(self) -> Settings:
        """A server's settings for this model, but none from the environment."""
        return Settings.model_construct(**{name: getattr(self, name) for name in _OF_THE_MODEL})


@dataclass(frozen=True, slots=True)
class _Decoded:
    photograph: Photograph
    seen: ModelInput


@dataclass(frozen=True, slots=True)
class _Failed:
    photograph: Photograph
    problem: Problem


@tells_what_was_foreseen
def classify(config: ClassifyConfig, operands: Sequence[str]) -> int:
    """Print the answers as they come. Exit code 0 where every photograph was answered, 1 where some were not
    (standard error says which), 2 for what cannot be meant."""
    found = find(operands)
    photographs = found.photographs
    pictures = None if config.mask is None else PictureFiles(config.mask, photographs)
    for line in (*found.remarks, *found.failures):
        complain("classify", line)
    if not photographs:
        return FAILED

    classifier, model = _load(config)
    try:
        resolved = resolve(config.options, config.settings, model)
    except InvalidValue as problem:
        raise UsageError(problem.detail) from problem

    report: _Lines | _Table = _Lines(model) if config.as_json else _Table(photographs)
    failed = 0
    # Where the rows appear on a terminal, they show how far it is.
    progress = tqdm(
        total=len(photographs), unit="photograph", dynamic_ncols=True, disable=sys.stdout.isatty() or None
    )
    with progress:
        for batch in _decoded_batches(photographs, model, config):
            computed = _computed(classifier, batch, resolved, config)
            for outcome in _outcomes(batch, computed, model):
                if isinstance(outcome, _Failed):
                    failed += 1
                    complain("classify", f"{shown(str(outcome.photograph))}: {outcome.problem.detail}")
                    report.failed(outcome)
                    continue
                image, classified = outcome
                picture = None
                if pictures is not None:
                    drawn = _picture(classified, image.seen.pixels, model, config)
                    try:
                        picture = pictures.save(image.photograph, drawn)
                    except OSError as error:
                        failed += 1
                        complain("classify", f"{shown(str(image.photograph))}: no mask: {in_words(error)}")
                result = image_result(
                    classified,
                    model,
                    resolved=resolved,
                    mask=config.mask_format,
                    every_stage=config.mask_stages,
                    seen=image.seen,
                )
                for warning in image.seen.warnings:
                    complain("classify", f"{image.photograph}: {warning}")
                report.answered(image.photograph, result, picture)
            progress.update(len(batch))
    if failed and len(photographs) > 1:
        complain("classify", f"{failed} of {len(photographs)} photographs were not answered")
    return FAILED if failed or found.failures else 0


def _load(config: ClassifyConfig) -> "tuple[Classifier, ModelInfo]":
    """Raises ValueError or OSError for a model or a device that cannot be had."""
    from app.engine.loading import describe, load_model
    from models.classifier import Classifier
    from models.device import choose_device, choose_dtype

    device = choose_device(config.device)
    dtype = choose_dtype(device, config.dtype)
    loaded = load_model(config.settings)
    return Classifier(loaded.model, loaded.input, device, dtype), describe(loaded, device, dtype)


def _decoded_batches(
    photographs: Sequence[Photograph], model: ModelInfo, config: ClassifyConfig
) -> Iterator[list[_Decoded | _Failed]]:
    """The photographs in batches; while one is computed, the next is read and decoded."""
    limits = ImageLimits(config.max_image_pixels, config.truncated_images)

    def decoded(photograph: Photograph) -> _Decoded | _Failed:
        try:
            return _Decoded(photograph, decode(photograph.read(), model.input, limits))
        except Problem as problem:
            return _Failed(photograph, problem)
        except OSError as error:
            return _Failed(photograph, UnreadableRequest(f"it cannot be read: {error.strerror or error}"))

    batches: list[list[Future[_Decoded | _Failed]]] = []
    with ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode") as pool:
        for start in range(0, len(photographs), config.batch_size):
            batch = photographs[start : start + config.batch_size]
            batches.append([pool.submit(decoded, photograph) for photograph in batch])
            if len(batches) > 1:
                yield [future.result() for future in batches.pop(0)]
        for rest in batches:
            yield [future.result() for future in rest]


def _computed(
    classifier: "Classifier",
    batch: Sequence[_Decoded | _Failed],
    resolved: ResolvedOptions,
    config: ClassifyConfig,
) -> list[Classified]:
    """What the model says of those of the batch that were decoded, in order."""
    import torch

    from models.classifier import ImageRequest

    pixels = [image.seen.pixels for image in batch if isinstance(image, _Decoded)]
    if not pixels:
        return []
    wants_kept = config.mask is not None or config.mask_format != "none"
    request = ImageRequest(resolved.pruning, config.top_k, wants_kept, resolved.margin)
    predictions = classifier.classify(torch.from_numpy(np.stack(pixels)), [request] * len(pixels))
    return [
        Classified(
            Answer(
                id=place,
                classes=prediction.classes.tolist(),
                scores=prediction.scores.tolist(),
                kept_counts=prediction.kept_counts,
                keep_ratio=prediction.keep_ratio,
                compute=prediction.compute,
                runs=prediction.runs,
                queue_s=0.0,
                compute_s=0.0,
            ),
            tuple(stage.astype(np.uint16) for stage in prediction.kept or ()),
        )
        for place, prediction in enumerate(predictions)
    ]


def _outcomes(
    batch: Sequence[_Decoded | _Failed], computed: Sequence[Classified], model: ModelInfo
) -> Iterator[tuple[_Decoded, Classified] | _Failed]:
    """Each image of the batch with what was computed for those that were decoded, in order."""
    found = iter(computed)
    for image in batch:
        if isinstance(image, _Failed):
            yield image
            continue
        classified = next(found)
        try:
            check_numbers(classified, model)
        except InternalFault as problem:
            yield _Failed(image.photograph, problem)
        else:
            yield image, classified


def _picture(
    classified: Classified,
    pixels: UInt8[np.ndarray, "height width 3"],
    model: ModelInfo,
    config: ClassifyConfig,
) -> UInt8[np.ndarray, "height _ 3"]:
    """What the model saw with the pruned patches dimmed: after the last stage, or each, side by side."""
    grid = model.architecture.grid
    stages = [
        dimmed(cells_of(kept, grid), pixels, model.patch_size, model.patch_stride) for kept in classified.kept
    ]
    if not stages:  # of a model that is served without stages, all is kept
        return pixels
    return np.concatenate(stages, axis=1) if config.mask_stages else stages[-1]


class _Lines:
    """JSON for programs: an object a line for each photograph, in order."""

    def __init__(self, model: ModelInfo) -> None:
        self._model = model.name

    def answered(self, photograph: Photograph, result: dict[str, Any], picture: Path | None) -> None:
        own = {} if picture is None else _named("mask_picture", str(picture))
        self._print({**_named("photograph", str(photograph)), "model": self._model, **result, **own})

    def failed(self, failed: _Failed) -> None:
        name = _named("photograph", str(failed.photograph))
        self._print({**name, "problem": failed.problem.to_dict()})

    def _print(self, line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)


def _named(member: str, path: str) -> dict[str, str]:
    """A path as a member of a JSON object. One that is not UTF-8 is no text: its bytes stand beside it."""
    encoded = os.fsencode(path)
    text = encoded.decode(errors="replace")
    if text == path:
        return {member: path}
    return {member: text, f"{member}_base64": base64.b64encode(encoded).decode()}


class _Table:
    """For people: a row for each photograph's best label, with the further ones below it."""

    def __init__(self, photographs: Sequence[Photograph]) -> None:
        self._width = min(
            max(len("photograph"), *(len(shown(str(each))) for each in photographs)), _WIDEST_NAME
        )
        self._head: str | None = (
            f"{'photograph':<{self._width}}  keep_ratio  patches kept  compute   score  label"
        )

    def answered(self, photograph: Photograph, result: dict[str, Any], _: Path | None) -> None:
        if self._head is not None:
            print(self._head)
            self._head = None
        name = shown(str(photograph))
        if len(name) > self._width:  # the end of a path says more than its beginning
            name = "…" + name[-self._width + 1 :]
        patches = f"{result['patches']['kept']} of {result['patches']['total']}"
        begin = (
            f"{name:<{self._width}}  {result['keep_ratio']:>10.4g}  {patches:>12}  {result['compute']:>7.3f}"
        )
        for label in result["labels"]:
            print(f"{begin}  {label['score']:>6.4f}  {label['label']}", flush=True)
            begin = " " * len(begin)

    def failed(self, failed: _Failed) -> None:
        """Standard error has it."""
