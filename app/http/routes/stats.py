"""GET /v1/stats: the server's own counts, as JSON for a page or a script; Prometheus reads /metrics."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.http.dispatch import Dispatch
from app.http.paths import STATS
from app.telemetry import metrics, tallies


class Stats(BaseModel):
    """Counts since the server's start, over all its processes. Rates are differences of two answers."""

    clock_s: float = Field(description="Seconds of a monotonic clock. Only differences are meaningful.")
    engines_ready: int = Field(ge=0, description="Workers that are ready.")
    queue_images: int = Field(ge=0, description="Images that are waiting for a batch.")
    queue_limit_images: int = Field(
        ge=0, description="Maximum number of waiting images. Further images are refused."
    )
    images_answered: int = Field(ge=0, description="Images that were answered.")
    refusals: int = Field(ge=0, description="Requests that were refused or abandoned.")
    batches: int = Field(ge=0, description="Batches computed.")
    batch_images: int = Field(ge=0, description="Images in them.")
    batch_fill_sum: float = Field(
        ge=0, description="Sum over all batches of the used share of the token budget."
    )
    compute: float | None = Field(
        gt=0,
        description="Cost of the answered images as a share of the unpruned model's "
        "multiply-accumulates; null before the first.",
    )


def stats_router(dispatch: Dispatch) -> APIRouter:
    """The route, for a front end of these workers."""
    router = APIRouter(tags=["operations"])

    @router.get(STATS.path, summary="Queue, batches and images, counted since the server's start")
    async def stats() -> Stats:
        await asyncio.sleep(tallies.LATEST_S)
        totals = await asyncio.to_thread(_totals)
        ready = sum(bool(worker["ready"]) for worker in dispatch.workers)
        return described(totals, ready, time.monotonic())

    return router


def described(totals: Mapping[str, float], engines_ready: int, clock_s: float) -> Stats:
    """The counts, from samples of /metrics by name. A missing name counts as 0."""
    unpruned = totals.get("trimvit_compute_unpruned_macs_total", 0.0)
    spent = (
        unpruned
        - totals.get("trimvit_compute_saved_macs_total", 0.0)
        + totals.get("trimvit_compute_second_runs_macs_total", 0.0)
    )
    return Stats(
        clock_s=clock_s,
        engines_ready=engines_ready,
        queue_images=int(totals.get("trimvit_queue_images", 0)),
        queue_limit_images=int(totals.get("trimvit_queue_limit_images", 0)),
        images_answered=int(totals.get("trimvit_images_total", 0)),
        refusals=int(totals.get("trimvit_refusals_total", 0)),
        batches=int(totals.get("trimvit_batch_images_count", 0)),
        batch_images=int(totals.get("trimvit_batch_images_sum", 0)),
        batch_fill_sum=totals.get("trimvit_batch_fill_sum", 0.0),
        compute=spent / unpruned if unpruned else None,
    )


def _totals() -> dict[str, float]:
    """Every sample of the service's metrics, summed over its labels. Of images, only the answered ones."""
    totals: dict[str, float] = defaultdict(float)
    for family in metrics.registry().collect():
        for sample in family.samples:
            if sample.labels.get("outcome", "answered") == "answered":
                totals[sample.name] += sample.value
    return totals
