"""The HTTP process: `python -m app.http.process`, started by the supervisor. It never imports torch."""

import asyncio
import logging
import os
import resource
import socket
from pathlib import Path

import uvicorn
from setproctitle import setproctitle

from app.engine.client import EngineClient
from app.http.connections import Server, bounded
from app.http.traffic import Traffic
from app.lifeline import die_with_parent
from app.logs import configure_logging
from app.main import create_app
from app.settings import Settings

log = logging.getLogger(__name__)

_OTHER_FILES = 200


async def run(settings: Settings, listener: socket.socket, addresses: list[str], reports: Path) -> None:
    """Serve HTTP on the inherited socket until SIGTERM; requests under way are finished."""
    engines = EngineClient(
        addresses,
        reports=reports,
        patience_s=settings.restart_wait_s,
        most_waiting=settings.max_queue_images,
    )
    traffic = Traffic()
    config = uvicorn.Config(
        create_app(settings, engines, traffic),
        http=bounded(
            _connections(settings.max_connections), settings.head_timeout_s, settings.write_timeout_s
        ),
        ws="none",
        timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=None,  # the supervisor keeps the grace time
    )
    await Server(config, traffic).serve(sockets=[listener])


def _connections(wanted: int) -> int:
    """As many as there may be open files, some of which are needed for other things."""
    may_be = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES
    if wanted > may_be:
        log.warning("at most %d connections, not %d: the limit of open files is too low", may_be, wanted)
    return max(1, min(wanted, may_be))


def main() -> None:
    """Read what the supervisor passed in the environment, and run."""
    settings = Settings.model_validate_json(os.environ["TRIMVIT_SETTINGS"])
    index = os.environ["TRIMVIT_HTTP_INDEX"]
    die_with_parent()
    setproctitle(f"trimvit: http {index}")
    configure_logging(settings.log_level, f"http {index}", settings.log_format)
    listener = socket.socket(fileno=int(os.environ["TRIMVIT_HTTP_SOCKET"]))
    addresses = os.environ["TRIMVIT_HTTP_ENGINES"].split()
    asyncio.run(run(settings, listener, addresses, Path(os.environ["TRIMVIT_HTTP_REPORTS"])))


if __name__ == "__main__":
    main()
