"""/v2/models/NAME/stats: counts and durations of each model since the server's start, over all front ends.

In the terms of Triton's statistics extension (docs/protocol/extension_statistics.md of its server).
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping

from fastapi import APIRouter
from prometheus_client import Metric
from pydantic import BaseModel, Field

from app.http.classification import Classification
from app.http.model_counts import FAIL, SUCCESS
from app.http.paths import MODEL_STATISTICS
from app.http.routes.model_names import (
    MODELS_FOLDER,
    VERSION,
    ModelName,
    ModelVersion,
    check_version,
    known_model,
)
from app.http.routes.plain_errors import errors
from app.telemetry import metrics, tallies
from models.bundled import BUNDLED_MODEL

_Samples = Mapping[tuple[str, ...], float]

_PER_SECOND = 1_000_000_000
_NO_MODEL = errors(404, 503)


class DurationStatistics(BaseModel):
    """How often, and how long altogether."""

    count: int = Field(ge=0, description="How often.", examples=[3])
    ns: int = Field(ge=0, description="Total duration in nanoseconds.", examples=[41_000_000])


class RequestStatistics(BaseModel):
    """Requests, and where the time of those that were answered went. Of a request with several images, the
    phases are those of the image that took longest."""

    success: DurationStatistics = Field(
        description="Successful requests, from the arrival of the head to the response."
    )
    fail: DurationStatistics = Field(
        description="Requests that ended in an error after they were read, or whose client disconnected."
    )
    queue: DurationStatistics = Field(description="Waiting for a batch.")
    compute_input: DurationStatistics = Field(
        description="Decoding images or resizing pixels to the input of the model."
    )
    compute_infer: DurationStatistics = Field(description="Computing the batch.")
    compute_output: DurationStatistics = Field(description="Writing the answer.")


class BatchStatistics(BaseModel):
    """Batches of one size."""

    batch_size: int = Field(ge=1, description="Images in the batch.", examples=[8])
    compute_infer: DurationStatistics = Field(description="Computing such batches.")


class ModelStatistics(BaseModel):
    """Statistics of one model since the server started. Images are decoded, and answers written, one by one,
    so batches have no time for input and output."""

    name: str = Field(description="The model's name.", examples=[BUNDLED_MODEL])
    version: str = Field(description="The model's version.", examples=[VERSION])
    last_inference: int = Field(
        ge=0,
        description="When a request was last answered, in milliseconds of Unix time; 0 before the first.",
    )
    inference_count: int = Field(ge=0, description="Images of the answered requests.", examples=[24])
    execution_count: int = Field(ge=0, description="Batches computed.", examples=[5])
    inference_stats: RequestStatistics = Field(description="Requests.")
    batch_stats: list[BatchStatistics] = Field(
        description="Batches of up to 64 images by their size; of larger ones only `execution_count` tells."
    )


class Statistics(BaseModel):
    """Statistics of the requested models."""

    model_stats: list[ModelStatistics] = Field(description="The default model first.")


def statistics_router(classification: Classification) -> APIRouter:
    """The routes. The route for all models must come before the one with a model's name."""
    router = APIRouter(tags=["open inference protocol"])

    @router.get(
        MODEL_STATISTICS.path,
        operation_id="v2_statistics",
        summary="Statistics of all models since the start of the server",
    )
    async def statistics() -> Statistics:
        return await _of(classification.models)

    @router.get(
        MODELS_FOLDER + "{model_name:model}/versions/{model_version}/stats",
        operation_id="v2_model_version_statistics",
        summary="Statistics of this version of the model since the start of the server",
        responses=_NO_MODEL,
    )
    async def version_statistics(model_name: ModelName, model_version: ModelVersion) -> Statistics:
        model = known_model(classification, model_name)
        check_version(model.name, model_version)
        return await _of([model.name])

    @router.get(
        MODELS_FOLDER + "{model_name:model}/stats",
        operation_id="v2_model_statistics",
        summary="Statistics of the model since the start of the server",
        responses=_NO_MODEL,
    )
    async def model_statistics(model_name: ModelName) -> Statistics:
        return await _of([known_model(classification, model_name).name])

    return router


async def _of(models: Iterable[str]) -> Statistics:
    await asyncio.sleep(tallies.LATEST_S)
    return await asyncio.to_thread(lambda: described(metrics.registry().collect(), models))


def described(families: Iterable[Metric], models: Iterable[str]) -> Statistics:
    """The statistics of these models, from the metrics of all processes."""
    of_model: dict[str, dict[tuple[str, ...], float]] = {}
    for family in families:
        for sample in family.samples:
            labels = dict(sample.labels)
            if (model := labels.pop("model", None)) is not None:
                of_model.setdefault(model, {})[sample.name, *labels.values()] = sample.value
    return Statistics(model_stats=[_of_one(name, of_model.get(name, {})) for name in models])


def _of_one(name: str, samples: _Samples) -> ModelStatistics:
    batches = dict(_batches(samples))
    return ModelStatistics(
        name=name,
        version=VERSION,
        last_inference=int(samples.get(("trimvit_model_last_request_timestamp_seconds",), 0) * 1000),
        inference_count=int(samples.get(("trimvit_model_request_images_sum",), 0)),
        execution_count=sum(each.count for each in batches.values()),
        inference_stats=RequestStatistics(
            success=_duration(samples, "trimvit_model_request_seconds", SUCCESS),
            fail=_duration(samples, "trimvit_model_request_seconds", FAIL),
            queue=_duration(samples, "trimvit_model_phase_seconds", "queue"),
            compute_input=_duration(samples, "trimvit_model_phase_seconds", "decode"),
            compute_infer=_duration(samples, "trimvit_model_phase_seconds", "compute"),
            compute_output=_duration(samples, "trimvit_model_phase_seconds", "render"),
        ),
        batch_stats=[
            BatchStatistics(batch_size=size, compute_infer=batches[size])
            for size in sorted(size for size in batches if size)
        ],
    )


def _batches(samples: _Samples) -> Iterator[tuple[int, DurationStatistics]]:
    """The batches by number of images. 0: larger ones than are counted separately."""
    for name, *labels in samples:
        if name == "trimvit_model_batch_seconds_count":
            size = int(labels[0]) if labels[0].isdecimal() else 0
            yield size, _duration(samples, "trimvit_model_batch_seconds", labels[0])


def _duration(samples: _Samples, name: str, label: str) -> DurationStatistics:
    return DurationStatistics(
        count=int(samples.get((f"{name}_count", label), 0)),
        ns=round(samples.get((f"{name}_sum", label), 0.0) * _PER_SECOND),
    )
