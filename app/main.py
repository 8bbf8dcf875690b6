"""The ASGI application of one front end."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from app.engine.client import EngineClient
from app.http.access import KEY_HEADER, BrowserHeaders, RequireKey, declare_keys
from app.http.answers import WARNINGS_HEADER
from app.http.classify import Classification, Engines, classify_router
from app.http.documentation import documentation_router
from app.http.early import RefuseEarly
from app.http.elsewhere import paths_of
from app.http.expectation import CloseUnasked
from app.http.health import Health
from app.http.hosts import AnswerHosts, Hosts, answered_hosts
from app.http.hugging_face import hugging_face_router
from app.http.inflate import Inflated
from app.http.kserve_v1 import kserve_v1_router
from app.http.memory import most_held
from app.http.methods import HeadAsGet
from app.http.middleware import REQUEST_ID, Observe
from app.http.models import models_router
from app.http.open_inference import open_inference_router
from app.http.openapi import install_openapi, operation_id
from app.http.operations import operations_router
from app.http.page import page_router
from app.http.prefix import UnderPrefix
from app.http.problems import install_problem_handlers
from app.http.sagemaker import sagemaker_router
from app.http.sites import RefuseOtherSites
from app.http.stats import stats_router
from app.http.traffic import Bounded, Traffic
from app.image_work import ImageWork
from app.images import ImageLimits
from app.keys import key_ring
from app.settings import Settings
from app.tracing import Tracing

_DESCRIPTION = """Vision transformers that prune their own patches. Each image chooses its keep ratio:
the share of patches kept at each pruning stage, and so its own point between accuracy and cost."""


def create_app(
    settings: Settings,
    engines: Engines,
    decoders: Executor | None = None,
    tracing: Tracing | None = None,
    traffic: Traffic | None = None,
    threads: Executor | None = None,
    listening_on: str | None = None,
) -> FastAPI:
    """The application on these engines, with images decoded by ``decoders``: by default, in threads of this
    process; its requests traced or not. An EngineClient is started, and it, the decoders and tracing are
    closed, with the application. ``traffic``: where to count what is under way. ``threads``: where
    images that came decoded are resized, and large answers written. ``listening_on``: the address that
    decides about the hosts that are answered; without it, all are.

    Raises KeysError where the API keys cannot be read.
    """
    if decoders is None:
        decoders = ThreadPoolExecutor(settings.decode_processes, thread_name_prefix="decode")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if isinstance(engines, EngineClient):
            await engines.start()
        yield
        if isinstance(engines, EngineClient):
            await engines.close()
        work.close()
        decoders.shutdown(wait=False)
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    # /docs loads its page from this server, not from another host.
    app = FastAPIOffline(
        title="TrimViT",
        version=version("trimvit"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # see problems.py, which needs no host for it
        servers=[{"url": ".", "description": "Where this document is."}],
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        generate_unique_id_function=operation_id,
    )
    limits = ImageLimits(settings.max_image_pixels, settings.truncated_images)
    work = ImageWork(decoders, settings.decode_processes, limits, threads)
    classification = Classification(settings, engines, work)
    traffic = traffic or Traffic()
    health = Health(engines, decoders, traffic)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RefuseEarly, classification=classification)
    app.add_middleware(Inflated, most_bytes=settings.max_body_bytes)
    app.add_middleware(
        Bounded,
        traffic=traffic,
        body_timeout_s=settings.body_timeout_s,
        most_body_bytes=most_held(settings.max_bodies_bytes, settings.max_body_bytes),
    )
    # The last one added is the outermost.
    app.add_middleware(RefuseOtherSites, origins=settings.cors_origins or ())
    keys = key_ring(settings)
    if keys is not None:
        app.add_middleware(RequireKey, keys=keys)
    if settings.cors_origins is not None:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", KEY_HEADER, REQUEST_ID, "Content-Type"],
            expose_headers=[REQUEST_ID, "Retry-After", "Server-Timing", WARNINGS_HEADER],
            allow_private_network=True,  # a page of a public site may be one of the origins
        )
    if listening_on is not None:
        hosts = answered_hosts(listening_on, settings.allowed_hosts, with_keys=keys is not None)
        app.add_middleware(AnswerHosts, hosts=hosts)
    app.add_middleware(CloseUnasked)
    app.add_middleware(Observe, tracing=tracing)
    app.add_middleware(BrowserHeaders)
    if settings.root_path is not None:
        app.add_middleware(UnderPrefix, prefix=settings.root_path)
    routers = (
        classify_router(classification),
        open_inference_router(classification, health),
        hugging_face_router(classification),
        kserve_v1_router(classification, health),
        sagemaker_router(classification),
        models_router(settings, engines),
        operations_router(health, with_metrics=settings.operations_port is None),
        stats_router(engines),
        page_router(settings),
        documentation_router(),
    )
    for router in routers:
        app.include_router(router)
    install_problem_handlers(app, paths_of(routers))
    install_openapi(app)
    if keys is not None:
        declare_keys(app)
    return app


def create_operations_app(health: Health, hosts: Hosts | None = None) -> FastAPI:
    """Probes and metrics alone, for a listener of their own. The health is that of the other application,
    which starts and closes what it is of. ``hosts``: those that are answered, by default all."""
    app = FastAPI(
        title="TrimViT operations", redirect_slashes=False, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.add_middleware(HeadAsGet)
    if hosts is not None:
        app.add_middleware(AnswerHosts, hosts=hosts)
    app.add_middleware(Observe)
    app.add_middleware(BrowserHeaders)
    router = operations_router(health, with_metrics=True)
    app.include_router(router)
    install_problem_handlers(app, paths_of([router]))
    return app
