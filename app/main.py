"""The ASGI application of one front end."""

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app.engine.client import EngineClient
from app.http.classify import Engines, classify_router
from app.http.middleware import Observe
from app.http.models import models_router
from app.http.operations import operations_router
from app.http.problems import install_problem_handlers
from app.http.traffic import Bounded, Traffic
from app.settings import Settings

_DESCRIPTION = """Vision transformers that prune their own patches. Each image chooses its keep ratio:
the share of patches kept at each pruning stage, and so its own point between accuracy and cost."""


def create_app(settings: Settings, engines: Engines, traffic: Traffic | None = None) -> FastAPI:
    """The application on these engines. An EngineClient is started and closed with it. ``traffic``: where to
    count what is under way."""
    decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if isinstance(engines, EngineClient):
            await engines.start()
        yield
        if isinstance(engines, EngineClient):
            await engines.close()
        decoders.shutdown(wait=False)

    # /docs loads its page from this server, not from another host.
    app = FastAPIOffline(
        title="TrimViT",
        version=version("trimvit"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
    )
    app.add_middleware(
        Bounded,
        traffic=traffic or Traffic(),
        body_timeout_s=settings.body_timeout_s,
        most_body_bytes=settings.max_bodies_bytes,
    )
    app.add_middleware(Observe)
    install_problem_handlers(app)
    app.include_router(classify_router(settings, engines, decoders))
    app.include_router(models_router(settings, engines))
    app.include_router(operations_router(engines))
    return app
