"""`trimvit ray`."""

import logging
import math
import os
import signal
import socket
import threading
from pathlib import Path

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation

from app.ray.application import QUIET, application
from app.ray.settings import RaySettings
from app.security.keys import KEYS_VARIABLE
from app.settings.variables import plain

log = logging.getLogger(__name__)

NAME = "trimvit"
_LONGEST_DEADLINE_S = 600.0
_CONNECT_S = 10.0
_PROXIES = {"every-node": ProxyLocation.EveryNode, "head-node": ProxyLocation.HeadOnly}
_FOR_ALL_PROCESSES = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "app.ray.ask_again:middlewares",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def run(settings: RaySettings) -> int:
    """Deploy, and stay until SIGTERM or SIGINT unless detached. Returns the exit code."""
    if settings.ray_address is not None and plain(os.environ.get(KEYS_VARIABLE, "")):
        log.error(
            "the API keys in %s are not passed on to a cluster that is already running, so its replicas "
            "would "
            "require no key: give --api-keys-file, with a path that exists on every node",
            KEYS_VARIABLE,
        )
        return 1
    os.environ.update(_FOR_ALL_PROCESSES)  # for a cluster that is started here
    starts_cluster = settings.ray_address is None
    try:
        _check_listens(settings.ray_address)
        ray.init(
            address=settings.ray_address or "local",
            runtime_env={"env_vars": _FOR_ALL_PROCESSES},
            log_to_driver=settings.log_level in ("debug", "info"),
            include_dashboard=False if starts_cluster else None,
        )
    except ConnectionError as error:
        log.error("cannot reach the Ray cluster %s: %s", settings.ray_address, error)
        return 1
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # after ray.init, which installs its own handlers
        signal.signal(number, lambda *_: told.set())
    try:
        serve.start(
            proxy_location=_PROXIES[settings.proxies],
            logging_config=QUIET,
            http_options=HTTPOptions(
                host=settings.host,
                port=settings.port,
                keep_alive_timeout_s=math.ceil(settings.keep_alive_s),
                request_timeout_s=_LONGEST_DEADLINE_S,
                ssl_certfile=_text(settings.tls_certificate),
                ssl_keyfile=_text(settings.tls_key),
            ),
        )
        serve.run(application(settings), name=NAME, route_prefix="/")
    except RuntimeError as error:
        log.error("deployment failed: %s", error)
        serve.delete(NAME)
        return 1
    scheme = "http" if settings.tls_certificate is None else "https"
    log.info("listening on %s://%s:%d", scheme, settings.host, settings.port)
    if settings.detach:
        return 0
    told.wait()
    log.info("stopping: finishing the accepted requests")
    if starts_cluster:
        serve.shutdown()
    else:
        serve.delete(NAME)
    ray.shutdown()
    log.info("stopped")
    return 0


def _check_listens(address: str | None) -> None:
    """Raises ConnectionError if nobody listens there, because Ray would retry for a quarter of an hour."""
    if address is None or address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise ConnectionError(str(error)) from error


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
