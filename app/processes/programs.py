"""The programs of a server that are kept running: dispatcher, workers, front ends."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from app.processes.environment import (
    DISPATCHER,
    ProcessFiles,
    dispatcher_variables,
    environment_of,
    front_end_variables,
    worker_variables,
)
from app.processes.fork_server import ForkServer
from app.processes.keeper import Process, Program
from app.processes.libraries import tune_libraries
from app.processes.spawned import Spawned
from app.settings.settings import Settings

DISPATCH = "app.dispatch.process"
WORKER = "app.worker.process"
HTTP = "app.main"
# Modules that only workers need, imported once by the fork server. Metrics are not included, because each
# worker has its own files for them. The first module speeds up the import of the others.
PRELOADED = ("models.timm_import", "models.classifier", "models.load")
FORKABLE = {"OPENBLAS_NUM_THREADS": "1"}  # otherwise numpy's BLAS starts threads on import

_SETTLED_S = 5.0  # a front end that runs this long has started successfully


def fork_server(settings: Settings, slots: int) -> ForkServer:
    """The fork server of the workers. ``slots``: the descriptor of the shared memory."""
    environment = environment_of(settings, "fork-server", FORKABLE, keys=False)
    return ForkServer(environment, PRELOADED, settings.load_limit_s, (slots,))


def dispatcher_program(settings: Settings, folder: Path, settles_s: float = _SETTLED_S) -> Program:
    """The dispatcher of that private folder."""
    files = ProcessFiles(folder, DISPATCHER)

    async def start() -> Process:
        return _spawned(settings, files, DISPATCH, dispatcher_variables(files))

    def ended() -> None:
        from app.telemetry import metrics  # imported late, when the folder of the metrics is known

        metrics.dispatcher_ended()

    return Program(files, start, settles_s, ended=ended)


def worker_program(
    settings: Settings,
    folder: Path,
    index: int,
    device: str,
    slots: int,
    sharing: int = 1,
    forked_by: ForkServer | None = None,
) -> Program:
    """A worker on that device, which is used by ``sharing`` workers. ``slots``: the descriptor of the shared
    memory. Without a fork server, it is started as a new program."""
    files = ProcessFiles(folder, f"worker-{index}")
    variables = worker_variables(files, index, device, sharing, slots)

    async def start() -> Process:
        if forked_by is None:
            return _spawned(settings, files, WORKER, variables, (slots,))
        return await forked_by.start(WORKER, environment_of(settings, files.name, variables, keys=False))

    def began() -> None:
        from app.telemetry import metrics

        metrics.WORKER_UP.labels(files.name).set(1)

    def ended() -> None:
        from app.telemetry import metrics

        metrics.worker_ended(files.name)

    return Program(files, start, began=began, ended=ended)


def front_end_program(
    settings: Settings,
    folder: Path,
    index: int,
    reports: Path,
    listeners: Sequence[int],
    operations: Sequence[int],
    slots: int,
) -> Program:
    """A front end on these listening sockets; ``operations`` are those for probes and metrics only.
    ``reports``: the file with the reports of workers. ``slots``: the descriptor of the shared memory."""
    files = ProcessFiles(folder, f"http-{index}")
    variables = front_end_variables(files, index, reports, listeners, operations, slots)
    inherited = (*listeners, *operations, slots)

    async def start() -> Process:
        return _spawned(settings, files, HTTP, variables, inherited, keys=True)

    return Program(files, start, _SETTLED_S)


def _spawned(
    settings: Settings,
    files: ProcessFiles,
    module: str,
    variables: Mapping[str, str],
    inherited: Sequence[int] = (),
    *,
    keys: bool = False,
) -> Spawned:
    environment = environment_of(settings, files.name, variables, keys=keys)
    tune_libraries(environment)
    return Spawned((sys.executable, "-m", module), environment, inherited)
