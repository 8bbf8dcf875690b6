"""Routes for operators and orchestrators: liveness, readiness, metrics."""

import asyncio

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from app.http.health import Health
from app.http.paths import LIVEZ, METRICS, PING, READYZ
from app.http.schemas import Readiness
from app.telemetry import metrics, tallies


def operations_router(health: Health, *, with_metrics: bool) -> APIRouter:
    """The routes for probes and, unless they have a listener of their own, for the metrics of a front end."""
    router = APIRouter(tags=["operations"])

    @router.get(LIVEZ.path, summary="The HTTP process runs")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @router.get(
        PING.path,
        operation_id="ping",
        summary="Same as /readyz, for Amazon SageMaker and clients of TorchServe",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "Not ready."}},
    )
    @router.get(
        READYZ.path,
        summary="A worker has loaded, warmed up and answers, and images can be decoded",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "Not ready."}},
    )
    async def readyz() -> JSONResponse:
        ready = health.is_ready()
        return JSONResponse(
            {
                "status": "ready" if ready else "not ready",
                "reason": health.look_for_trouble(),
                "engines": health.dispatch.workers,
            },
            status_code=200 if ready else 503,
            headers={} if ready else {"Retry-After": "1"},
        )

    if not with_metrics:
        return router

    @router.get(
        METRICS.path,
        operation_id="metrics",
        summary="Prometheus metrics of all processes",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def prometheus() -> Response:
        await asyncio.sleep(tallies.LATEST_S)
        page, content_type = await asyncio.to_thread(metrics.exposition)
        return Response(page, media_type=content_type)

    return router
