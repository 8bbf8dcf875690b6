"""A worker's process: `python -m app.worker.process`, started by the supervisor.

torch and the network are imported inside `run` only.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from setproctitle import setproctitle

from app.messages.capacity import Limits
from app.messages.served_now import read_served
from app.messages.slot_map import SlotMap
from app.messages.slots import SlotReader
from app.processes.heap import give_back_freed_memory
from app.processes.heartbeat import Heartbeat
from app.processes.parent_death import LOAD_FAILED, die_with_parent
from app.processes.reports import tell_reason
from app.settings.combinations import without_effect
from app.settings.served_models import ServedModel
from app.settings.settings import Settings
from app.telemetry.logs import configure_logging
from app.worker.backend import Backend
from app.worker.worker import WorkerLoop, only_those_of_the_start

log = logging.getLogger(__name__)

# On machines with many cores, each stream gets several cores, because one image on one of 96 cores would be
# slow.
MOST_STREAMS = 8


@dataclass(frozen=True, slots=True)
class WorkerArgs:
    """The supervisor's variables for a worker, in addition to the settings. ``socket``: the dispatcher's
    socket. ``slots``: the descriptor of the shared memory. ``sharing``: the number of workers on the same
    device. ``heartbeat``: the file of its heartbeat. ``learned``: the file for its successor. ``reason``: the
    file for the reason why it could not start. ``served``: the file that says which models are served."""

    index: int
    device: str
    socket: Path
    slots: int
    sharing: int = 1
    heartbeat: Path | None = None
    learned: Path | None = None
    reason: Path | None = None
    served: Path | None = None

    @classmethod
    def from_environment(cls) -> "WorkerArgs":
        """From the environment, as app.processes.environment.worker_variables wrote it."""
        told = os.environ
        return cls(
            int(told["TRIMVIT_WORKER_INDEX"]),
            told["TRIMVIT_WORKER_DEVICE"],
            Path(told["TRIMVIT_WORKER_SOCKET"]),
            int(told["TRIMVIT_WORKER_SLOTS"]),
            int(told["TRIMVIT_WORKER_SHARING"]),
            Path(told["TRIMVIT_WORKER_HEARTBEAT"]),
            Path(told["TRIMVIT_WORKER_LEARNED"]),
            Path(told["TRIMVIT_WORKER_REASON"]),
            Path(told["TRIMVIT_WORKER_SERVED"]),
        )

    @property
    def name(self) -> str:
        """The name of the process, the same for each successor."""
        return f"worker-{self.index}"


def run(settings: Settings, args: WorkerArgs) -> None:
    """Load the model and compute for the dispatcher until SIGTERM."""
    from app.worker.model_memory import check_memory
    from app.worker.torch_backend import TorchBackend
    from models.device import choose_device, choose_dtype, cores, int8_is_faster
    from models.families import UnsupportedModelError
    from models.load import ModelError

    try:
        device = choose_device(args.device)
        dtype = choose_dtype(device, settings.dtype)
    except (OSError, ValueError) as error:
        log.error("%s", error)
        sys.exit(LOAD_FAILED)
    if settings.dtype == "auto" and int8_is_faster(device, dtype):
        log.info(
            "computing in float32 on this CPU; --dtype int8 computes 1.3 to 1.6 times as many images/s, but "
            "changes the accuracy (measure it with: trimvit evaluate --dtype int8)"
        )
    on_cpu = device == "cpu"
    if settings.device == "auto":  # for an explicit device, the remarks were logged at the server's start
        for remark in without_effect(settings, on_cpu=on_cpu):
            log.warning("%s", remark)
    threads = min(settings.threads or max(1, cores() // args.sharing), cores())
    title = f"{device}:{args.index}" if on_cpu else device
    limits = limits_of(settings, threads, on_cpu=on_cpu)
    backends = [
        TorchBackend(settings, served, title, device, dtype, limits, threads, _of_model(args.learned, served))
        for served in served_now(settings, args.served)
    ]

    def backend_of(name: str) -> Backend:
        """Of a model that is loaded beside others, on no more threads than a batch of theirs has."""
        served = settings.listed_models[name]
        check_memory(served.reference, device)
        learned = _of_model(args.learned, served)
        if learned is not None:  # from an earlier model with this name
            learned.unlink(missing_ok=True)
        return TorchBackend(settings, served, title, device, dtype, limits, limits.stream_threads, learned)

    worker = make_loop(settings, args, backends, title, backend_of)
    try:
        worker.run()
    except (ModelError, UnsupportedModelError, OSError) as error:
        if worker.loaded:  # it has served before, so a restart may help
            raise
        log.error("cannot load the model %s: %s", settings.model, error)
        if args.reason is not None:
            tell_reason(args.reason, error)
        sys.exit(LOAD_FAILED)


def served_now(settings: Settings, served: Path | None) -> list[ServedModel]:
    """The models to load at the start, the default one first: those that are served now, if some have been
    loaded or unloaded since the server's start."""
    others = None if served is None or not settings.model_repository else read_served(served)
    if others is None:
        return list(settings.models)
    listed = settings.listed_models
    return [settings.models[0], *(listed[name] for name in others if name in listed)]


def _of_model(learned: Path | None, served: ServedModel) -> Path | None:
    """The file of what is learned about that model."""
    if learned is None or served.name is None:
        return learned
    return learned.with_name(f"{learned.name}-{served.name}")


def limits_of(settings: Settings, threads: int, *, on_cpu: bool) -> Limits:
    """What a worker with this number of threads may run at the same time."""
    # A GPU computes one batch while the next one is prepared and copied. More streams would only add
    # queueing.
    streams = min(settings.streams or MOST_STREAMS, threads) if on_cpu else settings.streams or 2
    return Limits(
        batch_tokens=settings.max_batch_tokens or (4096 if on_cpu else 65536),
        threads=threads if on_cpu else streams,
        streams=streams,
    )


def make_loop(
    settings: Settings,
    args: WorkerArgs,
    backends: Sequence[Backend],
    title: str,
    backend_of: Callable[[str], Backend] = only_those_of_the_start,
) -> WorkerLoop:
    """The worker with those backends, one for each model, and with those that ``backend_of`` returns later.
    It also sets the name of the process, and stops the worker on SIGTERM."""
    setproctitle(f"trimvit: worker {title}")
    slots = SlotMap.for_queue(settings.http_workers, settings.max_queue_images)
    worker = WorkerLoop(
        args.name,
        args.socket,
        backends,
        lambda pixel_bytes: SlotReader(args.slots, slots, pixel_bytes).view,
        None if args.heartbeat is None else Heartbeat(args.heartbeat),
        settings.hang_after_s,
        backend_of,
    )
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    return worker


def main(compute: Callable[[Settings, WorkerArgs], None] = run) -> None:
    """Read the supervisor's variables from the environment, and ``compute``. If that fails, write the reason
    for the supervisor."""
    settings = Settings.model_validate_json(os.environ["TRIMVIT_SETTINGS"])
    args = WorkerArgs.from_environment()
    die_with_parent()
    configure_logging(settings.log_level, f"worker {args.index}", settings.log_format)
    give_back_freed_memory()
    try:
        compute(settings, args)
    except Exception as error:
        if args.reason is not None:
            tell_reason(args.reason, error)
        raise


if __name__ == "__main__":
    main()
