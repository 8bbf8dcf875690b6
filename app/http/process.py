"""The HTTP process: `python -m app.http.process`, started by the supervisor. It never imports torch."""

import asyncio
import gc
import os
import socket
from functools import partial
from pathlib import Path

from setproctitle import setproctitle

from app import background, metrics, tracing
from app.decoding import DecodingProcesses, memory_for
from app.engine.client import EngineClient
from app.heap import give_back_freed_memory, map_large_memory
from app.http.health import Health
from app.http.hosts import answered_hosts
from app.http.listeners import main_config, operations_config, serve
from app.http.traffic import Traffic
from app.lifeline import die_with_parent
from app.logs import configure_logging
from app.main import create_app, create_operations_app
from app.pulse import Beat, Pulse
from app.settings import Settings

_BEAT_S = 0.25

# How long another thread may keep the interpreter from the event loop, which may wait for it many times in
# one request. Python's 5 ms made /livez wait for 0.2 s while bodies of 31 MB were read.
_SWITCH_S = 0.001


async def run(
    settings: Settings,
    listeners: list[socket.socket],
    addresses: list[str],
    reports: Path,
    operations_listeners: list[socket.socket],
    pulse: Pulse,
) -> None:
    """Serve HTTP on the inherited sockets until SIGTERM; requests under way are finished."""
    background.tell_of_stray_failures()
    beating = background.kept(partial(_beat, pulse), "pulse")
    metrics.INCIDENTS.labels("pulse")  # so that a panel of incidents has data before there is one
    engines = EngineClient(
        addresses,
        reports=reports,
        patience_s=settings.restart_wait_s,
        most_waiting=settings.max_queue_images,
    )
    decoders = DecodingProcesses(
        settings.decode_processes, settings.decode_timeout_s, memory_for(settings.max_image_pixels)
    )
    traffic = Traffic()
    app = create_app(
        settings, engines, decoders, tracing.from_environment(), traffic, listening_on=settings.host
    )
    # The application is a great many objects that stay. Looking for garbage in them all, again and again, was
    # 44 % of what a profile saw of this process under overload, in pauses that all requests wait for.
    gc.collect()
    gc.freeze()
    operations = None
    if operations_listeners:
        hosts = answered_hosts(settings.operations_host, settings.allowed_hosts, with_keys=False)
        operations = operations_config(
            create_operations_app(Health(engines, decoders, traffic), hosts), settings
        )
    try:
        await serve(main_config(app, settings), listeners, traffic, operations, operations_listeners)
    finally:
        beating.cancel()


async def _beat(pulse: Pulse) -> None:
    """Tell the supervisor that this loop goes on."""
    turns = 0
    while True:
        turns += 1
        pulse.write(Beat(turns, ready=True))
        await asyncio.sleep(_BEAT_S)


def main() -> None:
    """Read what the supervisor passed in the environment, and run."""
    settings = Settings.model_validate_json(os.environ["TRIMVIT_SETTINGS"])
    index = os.environ["TRIMVIT_HTTP_INDEX"]
    die_with_parent()
    setproctitle(f"trimvit: http {index}")
    configure_logging(settings.log_level, f"http {index}", settings.log_format)
    give_back_freed_memory()
    map_large_memory()
    listeners, operations = (
        [socket.socket(fileno=int(number)) for number in os.environ[variable].split()]
        for variable in ("TRIMVIT_HTTP_SOCKETS", "TRIMVIT_HTTP_OPERATIONS_SOCKETS")
    )
    addresses = os.environ["TRIMVIT_HTTP_ENGINES"].split("\n")
    reports = Path(os.environ["TRIMVIT_HTTP_REPORTS"])
    pulse = Pulse(Path(os.environ["TRIMVIT_HTTP_PULSE"]))
    asyncio.run(run(settings, listeners, addresses, reports, operations, pulse))


if __name__ == "__main__":
    main()
