"""A front end: its application (`create_app`), and its process (`python -m app.main`).

The supervisor starts the process. It never imports torch.
"""

import asyncio
import gc
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from setproctitle import setproctitle

from app.decoding.image_work import ImageWork
from app.decoding.images import ImageLimits
from app.decoding.pool import Decoders, DecodingProcesses, InExecutor, memory_for
from app.dispatch.client import DispatchClient
from app.http.classification import Classification
from app.http.dispatch import Dispatch
from app.http.health import Health
from app.http.methods import HeadAsGet
from app.http.middleware.access import BrowserHeaders, declare_keys
from app.http.middleware.hosts import AnswerHosts, Hosts, answered_hosts
from app.http.middleware.observe import Observe
from app.http.middleware.stack import surround
from app.http.openapi import install_openapi, operation_id
from app.http.problems import install_problem_handlers
from app.http.regions.table import Regions
from app.http.routes.classify import classify_router
from app.http.routes.direct import include
from app.http.routes.documentation import documentation_router
from app.http.routes.embed import embed_router
from app.http.routes.hugging_face import hugging_face_router
from app.http.routes.kserve_v1 import kserve_v1_router
from app.http.routes.models import models_router
from app.http.routes.open_inference.infer_routes import infer_router
from app.http.routes.open_inference.repository import repository_router
from app.http.routes.open_inference.routes import open_inference_router
from app.http.routes.open_inference.shared_memory import shared_memory_router
from app.http.routes.open_inference.statistics import statistics_router
from app.http.routes.operations import operations_router
from app.http.routes.page import page_router
from app.http.routes.sagemaker import sagemaker_router
from app.http.routes.stats import stats_router
from app.http.server.listeners import serve
from app.http.server.traffic import Traffic
from app.http.start_message import tell_when_ready
from app.http.started import is_for_people
from app.http.unknown_paths import paths_of
from app.messages.slot_map import SlotMap
from app.messages.slots import SlotWriter
from app.processes import background
from app.processes.heap import give_back_freed_memory, map_large_memory
from app.processes.heartbeat import Beat, Heartbeat
from app.processes.parent_death import die_with_parent
from app.security.keys import key_ring
from app.settings.settings import Settings
from app.telemetry import metrics, tallies, tracing
from app.telemetry.logs import configure_logging
from app.telemetry.tracing import Tracing

_DESCRIPTION = """Vision transformers that prune their own patches. Each image chooses its keep ratio:
the share of patches kept at each pruning stage, and so its own point between accuracy and cost."""

Beside = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_BEAT_S = 0.25
_LAST_EXPORT_S = 2.0  # how long the process waits at its end for a trace collector that does not respond

# How long another thread may hold the GIL while the event loop waits, which can happen many times per
# request. With Python's default of 5 ms, /livez took 0.2 s while bodies of 31 MB were read.
_SWITCH_S = 0.001


def create_app(
    settings: Settings,
    dispatch: Dispatch,
    decoders: Decoders | None = None,
    tracing: Tracing | None = None,
    traffic: Traffic | None = None,
    threads: Executor | None = None,
    listening_on: str | None = None,
    beside: Beside | None = None,
    regions: Regions | None = None,
) -> FastAPI:
    """The application for these workers, with images decoded by ``decoders`` (by default, in threads of this
    process), and with its requests traced or not. A DispatchClient is started and closed together with the
    application, and so are the decoders and tracing.

    ``traffic``: counts the open requests. ``threads``: where images that arrived as pixels are resized, and
    large answers are written. ``listening_on``: the address that decides which hosts are answered; without
    it, all are. ``beside``: runs while the application does, and sends requests to it, too. ``regions``: the
    shared memory of clients; without it, none is used.

    Raises KeysError if the API keys cannot be read.
    """
    if decoders is None:
        decoders = InExecutor(ThreadPoolExecutor(settings.decode_processes, thread_name_prefix="decode"))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if isinstance(dispatch, DispatchClient):
            await dispatch.start()
        async with nullcontext() if beside is None else beside(app):
            yield
        if isinstance(dispatch, DispatchClient):
            await dispatch.close()
        work.close()
        decoders.close()
        if tracing is not None:
            sending = background.thread(tracing.close, "last spans", lambda _: None)
            await asyncio.to_thread(sending.join, _LAST_EXPORT_S)

    # /docs loads its files from this server, not from another host.
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
        telemetry={"tracing": False, "metrics": False, "logs": False},  # app.telemetry has its own
    )
    limits = ImageLimits(settings.max_image_pixels, settings.truncated_images)
    work = ImageWork(decoders, settings.decode_processes, limits, threads)
    classification = Classification(settings, dispatch, work)
    traffic = traffic or Traffic()
    health = Health(dispatch, decoders, traffic)
    keys = key_ring(settings)
    for_images = (
        classify_router(classification),
        embed_router(classification),
        infer_router(classification, regions, settings.open_inference_input),
        hugging_face_router(classification),
        sagemaker_router(classification),
    )
    others = (
        shared_memory_router(regions, classification.body_limits),
        statistics_router(classification),
        open_inference_router(
            classification,
            health,
            settings,
            with_shared_memory=regions is not None,
        ),
        *((repository_router(dispatch, classification.body_limits),) if settings.model_repository else ()),
        kserve_v1_router(classification, health),
        models_router(settings, dispatch),
        operations_router(health, with_metrics=settings.operations_port is None),
        stats_router(dispatch),
        page_router(settings),
        documentation_router(),
    )
    include(app, for_images)
    surround(app, settings, classification, traffic, keys, tracing, listening_on)
    for router in others:
        app.include_router(router)
    install_problem_handlers(app, paths_of((*for_images, *others)))
    install_openapi(app)
    if keys is not None:
        declare_keys(app)
    return app


def create_operations_app(health: Health, hosts: Hosts | None = None) -> FastAPI:
    """Only probes and metrics, for a listener of their own. The health is that of the other application,
    which starts and closes its parts. ``hosts``: those that are answered, by default all."""
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


async def run(
    settings: Settings,
    listeners: list[socket.socket],
    client: DispatchClient,
    operations_listeners: list[socket.socket],
    heartbeat: Heartbeat,
    told: Path | None = None,
) -> None:
    """Serve HTTP on the inherited sockets until SIGTERM; open requests are finished. ``told``: the file that
    exists once the start message has been printed; None if there is no terminal."""
    background.report_stray_failures()
    beating = background.kept(partial(_beat, heartbeat), "heartbeat")
    telling = None
    if told is not None:
        telling = background.kept(
            partial(tell_when_ready, settings, listeners[0], client, told), "start message"
        )
    # Create the series now, so that a panel of incidents has data before the first one.
    metrics.INCIDENTS.labels("heartbeat")
    decoders = DecodingProcesses(
        settings.decode_processes, settings.decode_timeout_s, memory_for(settings.max_image_pixels)
    )
    traffic = Traffic()
    app = create_app(
        settings,
        client,
        decoders,
        tracing.from_environment(),
        traffic,
        listening_on=settings.host,
        beside=_grpc(settings),
        regions=_regions(settings),
    )
    # The application has many long-lived objects. Repeated garbage collection of them took 44 % of a profile
    # of this process under overload, in pauses that delay all requests.
    gc.collect()
    gc.freeze()
    operations = None
    if operations_listeners:
        hosts = answered_hosts(settings.operations_host, settings.allowed_hosts, with_keys=False)
        operations = create_operations_app(Health(client, decoders, traffic), hosts)
    try:
        await serve(app, settings, listeners, traffic, operations, operations_listeners)
    finally:
        beating.cancel()
        if telling is not None:
            telling.cancel()
        tallies.write()


def _grpc(settings: Settings) -> Beside | None:
    if settings.grpc_port is None:
        return None
    from app.grpc.server import grpc_server  # needs the extra grpc

    return partial(grpc_server, settings=settings)


def _regions(settings: Settings) -> Regions | None:
    if settings.shared_memory_bytes is None:
        return None
    file = Path(os.environ["TRIMVIT_HTTP_REGIONS"])
    return Regions(file, settings.shared_memory_bytes, settings.shared_memory_regions)


async def _beat(heartbeat: Heartbeat) -> None:
    """Report to the supervisor that the event loop runs."""
    turns = 0
    while True:
        turns += 1
        heartbeat.write(Beat(turns, ready=True))
        await asyncio.sleep(_BEAT_S)


def main() -> None:
    """Read the supervisor's variables from the environment, and run."""
    settings = Settings.model_validate_json(os.environ["TRIMVIT_SETTINGS"])
    index = os.environ["TRIMVIT_HTTP_INDEX"]
    die_with_parent()
    setproctitle(f"trimvit: http {index}")
    configure_logging(settings.log_level, f"http {index}", settings.log_format)
    give_back_freed_memory()
    map_large_memory()
    sys.setswitchinterval(_SWITCH_S)
    listeners, operations = (
        [socket.socket(fileno=int(number)) for number in os.environ[variable].split()]
        for variable in ("TRIMVIT_HTTP_SOCKETS", "TRIMVIT_HTTP_OPERATIONS_SOCKETS")
    )
    slots = SlotMap.for_queue(settings.http_workers, settings.max_queue_images)
    client = DispatchClient(
        Path(os.environ["TRIMVIT_HTTP_DISPATCHER"]),
        SlotWriter(int(os.environ["TRIMVIT_HTTP_SLOTS"]), slots, int(index)),
        index=int(index),
        workers=len(settings.devices),
        reports=Path(os.environ["TRIMVIT_HTTP_REPORTS"]),
        patience_s=settings.restart_wait_s,
        most_waiting=settings.max_queue_images,
    )
    beats = Path(os.environ["TRIMVIT_HTTP_HEARTBEAT"])
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    told = beats.with_name("told") if is_for_people(settings, on_terminal=on_terminal) else None
    asyncio.run(run(settings, listeners, client, operations, Heartbeat(beats), told))


if __name__ == "__main__":
    main()
