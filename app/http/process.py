"""The HTTP process: `python -m app.http.process`, started by the supervisor. It never imports torch."""

import asyncio
import os
import socket
from pathlib import Path

import uvicorn
from setproctitle import setproctitle

from app.engine.client import EngineClient
from app.lifeline import die_with_parent
from app.logs import configure_logging
from app.main import create_app
from app.settings import Settings


async def run(settings: Settings, listener: socket.socket, addresses: list[str], reports: Path) -> None:
    """Serve HTTP on the inherited socket until SIGTERM; requests under way are finished."""
    engines = EngineClient(
        addresses,
        reports=reports,
        patience_s=settings.restart_wait_s,
        most_waiting=settings.max_queue_images,
    )
    app = create_app(settings, engines)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=None,  # the supervisor keeps the grace time
    )
    await uvicorn.Server(config).serve(sockets=[listener])


def main() -> None:
    """Read what the supervisor passed in the environment, and run."""
    settings = Settings.model_validate_json(os.environ["TRIMVIT_SETTINGS"])
    index = os.environ["TRIMVIT_HTTP_INDEX"]
    die_with_parent()
    setproctitle(f"trimvit: http {index}")
    configure_logging(settings.log_level, f"http {index}")
    listener = socket.socket(fileno=int(os.environ["TRIMVIT_HTTP_SOCKET"]))
    addresses = os.environ["TRIMVIT_HTTP_ENGINES"].split()
    asyncio.run(run(settings, listener, addresses, Path(os.environ["TRIMVIT_HTTP_REPORTS"])))


if __name__ == "__main__":
    main()
