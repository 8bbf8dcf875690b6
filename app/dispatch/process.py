"""The dispatcher's process: `python -m app.dispatch.process`, started by the supervisor. It never imports
torch."""

import gc
import os
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Any

from setproctitle import setproctitle

from app.dispatch.dispatcher import Dispatcher
from app.dispatch.policy.agreement import Agreement
from app.dispatch.policy.batches import QueueLimits
from app.dispatch.server import Server
from app.messages.served_now import read_served, write_served
from app.messages.slot_map import SlotMap
from app.processes import background
from app.processes.heap import give_back_freed_memory
from app.processes.heartbeat import Heartbeat
from app.processes.parent_death import die_with_parent
from app.processes.reports import tell_reason
from app.settings.settings import Settings
from app.telemetry.logs import configure_logging


def run(
    settings: Settings, path: Path, heartbeat: Heartbeat | None = None, served: Path | None = None
) -> None:
    """Dispatch at that path until SIGTERM. ``served``: the file that says which models are served."""
    slots = SlotMap.for_queue(settings.http_workers, settings.max_queue_images)
    dispatcher = Dispatcher(
        QueueLimits(settings.max_queue_images, settings.max_queue_s),
        slots.count,
        settings.restart_wait_s,
        Agreement(settings.agreement_share),
        **_changing(settings, served),
    )
    server = Server(dispatcher, path, heartbeat)
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    gc.collect()
    gc.freeze()  # existing objects stay, so the garbage collector skips them while images wait
    server.run()


def _changing(settings: Settings, served: Path | None) -> dict[str, Any]:
    """The dispatcher's arguments about models that may be loaded and unloaded."""
    if not settings.model_repository or served is None:
        return {}
    others = read_served(served)
    if others is None:
        others = tuple(model.name for model in settings.models[1:] if model.name is not None)

    def remember(names: Collection[str]) -> None:
        try:
            write_served(served, names)
        except OSError as error:  # after a restart, the previous list is loaded first and then updated
            background.incident("list of served models", error)

    return {
        "listed": tuple(settings.listed_models),
        "others": others,
        "remember": remember,
        "load_limit_s": settings.load_limit_s,
    }


def main() -> None:
    """Read the supervisor's variables from the environment, and run."""
    settings = Settings.model_validate_json(os.environ["TRIMVIT_SETTINGS"])
    die_with_parent()
    setproctitle("trimvit: dispatcher")
    configure_logging(settings.log_level, "dispatcher", settings.log_format)
    give_back_freed_memory()
    try:
        run(
            settings,
            Path(os.environ["TRIMVIT_DISPATCHER_SOCKET"]),
            Heartbeat(Path(os.environ["TRIMVIT_DISPATCHER_HEARTBEAT"])),
            Path(os.environ["TRIMVIT_DISPATCHER_SERVED"]),
        )
    except Exception as error:
        tell_reason(Path(os.environ["TRIMVIT_DISPATCHER_REASON"]), error)
        raise


if __name__ == "__main__":
    main()
