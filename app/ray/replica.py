"""A replica: the HTTP application of one front end, with a dispatcher and a worker as its child processes.

The imports of the application and the metrics are made when a replica starts, because only then is it known
where the metrics are written. Ray's controller and proxies import this module, too.
"""

import asyncio
import logging
import os
import threading
from typing import TYPE_CHECKING

from ray import serve
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.messages.shared_memory import make_shared_memory
from app.messages.slot_map import SlotMap
from app.processes import background
from app.processes.heap import give_back_freed_memory
from app.processes.private_folder import PrivateFolder
from app.processes.programs import dispatcher_program, worker_program
from app.ray.autoscaling import WORK
from app.ray.processes import Processes
from app.settings.settings import Settings
from app.telemetry.metrics_files import reserve

if TYPE_CHECKING:
    from app.dispatch.client import DispatchClient

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.05
_LOOK_AFTER_S = 10.0  # interval between updates of the private folder
_SCRAPE_S = 5.0  # replicas that do not return their metrics in time are left out
_PROCESS_FAILED = 1


class Replica:
    """Serves the application of app.main.create_app on a worker of its own.

    A replica is ready when its worker has loaded and warmed up. It ends if its worker does not start: Ray
    then starts another one, and its requests are repeated there (app.ray.ask_again).
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._private = PrivateFolder()
        folder = self._private.path
        self._name = serve.get_replica_context().replica_tag
        (folder / "metrics").mkdir()
        self._slots = make_shared_memory("trimvit-slots")
        # In the order in which they are stopped. The dispatcher comes first, to finish accepted images.
        programs = (
            dispatcher_program(settings, folder, settles_s=0.0),
            worker_program(settings, folder, 0, settings.device, self._slots),
        )
        reserve(folder / "metrics", ("http-0", *(program.files.name for program in programs)))
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder / "metrics")
        os.environ["TRIMVIT_METRICS_SLOT"] = "http-0"
        from app.telemetry.logs import configure_logging

        give_back_freed_memory()
        configure_logging(settings.log_level, f"replica {self._name}", settings.log_format)
        self._ready = False
        self._failed: str | None = None
        self._client: DispatchClient | None = None
        self._socket = programs[0].files.socket
        self._processes = Processes(settings, programs, self._process_failed)
        self._processes.start()
        self._ended = threading.Event()
        background.kept_thread(self._look_after_folder, "keeper of the private folder")

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Ray Serve once, after the constructor. Raises RuntimeError if the worker cannot load."""
        from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

        from app.decoding.pool import DecodingProcesses, memory_for
        from app.http.server.forwarded import in_both_forms
        from app.main import create_app
        from app.telemetry import tracing

        settings = self._settings
        await self._wait_for_worker()
        self._client = self._new_client()
        decoders = DecodingProcesses(
            settings.decode_processes, settings.decode_timeout_s, memory_for(settings.max_image_pixels)
        )
        app: ASGIApp = _MetricsOfAll(
            create_app(
                settings,
                self._client,
                decoders,
                tracing.from_environment(),
                listening_on=settings.host,
            )
        )
        if settings.trusted_proxies is None:
            return app
        return ProxyHeadersMiddleware(app, in_both_forms(settings.trusted_proxies))  # type: ignore[arg-type, return-value]

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray Serve; read by app.ray.autoscaling.replicas_for_work."""
        return {WORK: 0.0 if self._client is None else self._client.work}

    def metrics_page(self) -> tuple[str, str]:
        """This replica's name, and the metrics of its processes."""
        from app.telemetry import metrics

        return self._name, metrics.exposition()[0].decode()

    def __del__(self) -> None:
        """Called by Ray Serve once all requests are answered."""
        self._ended.set()
        self._processes.stop()
        self._private.remove()

    def _new_client(self) -> "DispatchClient":
        from app.dispatch.client import DispatchClient
        from app.messages.slots import SlotWriter

        slots = SlotMap.for_queue(self._settings.http_workers, self._settings.max_queue_images)
        return DispatchClient(
            self._socket,
            SlotWriter(self._slots, slots, 0),
            patience_s=self._settings.restart_wait_s,
            most_waiting=self._settings.max_queue_images,
        )

    async def _wait_for_worker(self) -> None:
        probe = self._new_client()
        await probe.start()
        try:
            while probe.model is None:
                if self._failed is not None:
                    raise RuntimeError(self._failed)
                await asyncio.sleep(_LOOK_EVERY_S)
        finally:
            await probe.close()
        self._ready = True

    def _look_after_folder(self) -> None:
        """Keep the folder safe from cleaners; without it no process could be started again."""
        while self._private.refresh():
            if self._ended.wait(_LOOK_AFTER_S):
                return
        if not self._ended.is_set():
            self._process_failed(f"the folder {self._private.path} was removed")

    def _process_failed(self, reason: str) -> None:
        """Called from the processes' thread. Before the replica is ready, its start fails; afterwards, it
        ends."""
        self._failed = reason
        if self._ready:
            log.error("this replica exits: %s", reason)
            self._private.remove()
            os._exit(_PROCESS_FAILED)


class _MetricsOfAll:
    """The application, with a /metrics page for all replicas, because a proxy passes a scrape to any of them.

    The application answers first, so whoever may not see its own page does not see the others' either.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Replace the page of one replica by the page of all, and pass on everything else."""
        if scope["type"] != "http" or scope["path"] != "/metrics":
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        own = b""

        async def send_all(message: Message) -> None:
            nonlocal start, own
            if message["type"] == "http.response.start" and message["status"] == 200:
                start = message
                return
            if start is None:
                await send(message)
                return
            own += message.get("body", b"")
            if not message.get("more_body", False):
                try:
                    page = await _page_of_all()
                except Exception as error:  # fall back to this replica's own page
                    background.incident("metrics of all replicas", error)
                    page = own
                MutableHeaders(scope=start)["Content-Length"] = str(len(page))
                await send(start)
                await send({"type": "http.response.body", "body": page})

        await self._app(scope, receive, send_all)


async def _page_of_all() -> bytes:
    from app.ray.metrics_page import merged

    here = serve.get_replica_context()
    handle = serve.get_deployment_handle(here.deployment, here.app_name)
    # Runs in a thread, because results_async fails for all replicas if one does not respond in time.
    answers = await asyncio.to_thread(
        handle.broadcast("metrics_page").results, timeout_s=_SCRAPE_S, return_exceptions=True
    )
    return merged(dict(answer for answer in answers if isinstance(answer, tuple)))
