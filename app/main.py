"""The ASGI application of one front end."""

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app.engine.client import EngineClient
from app.http.classify import Classification, Engines, classify_router
from app.http.hugging_face import hugging_face_router
from app.http.middleware import Observe
from app.http.models import models_router
from app.http.open_inference import open_inference_router
from app.http.openapi import install_openapi, operation_id
from app.http.operations import operations_router
from app.http.page import page_router
from app.http.problems import install_problem_handlers
from app.http.stats import stats_router
from app.settings import Settings

_DESCRIPTION = """Vision transformers that prune their own patches. Each image chooses its keep ratio:
the share of patches kept at each pruning stage, and so its own point between accuracy and cost."""


def create_app(settings: Settings, engines: Engines) -> FastAPI:
    """The application on these engines. An EngineClient is started and closed with it."""
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
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        generate_unique_id_function=operation_id,
    )
    app.add_middleware(Observe)
    install_problem_handlers(app)
    classification = Classification(settings, engines, decoders)
    app.include_router(classify_router(classification))
    app.include_router(open_inference_router(classification, engines))
    app.include_router(hugging_face_router(classification))
    app.include_router(models_router(settings, engines))
    app.include_router(operations_router(engines))
    app.include_router(stats_router(engines))
    app.include_router(page_router(settings))
    install_openapi(app)
    return app
