"""The environment variables of the server's processes. The supervisor and a Ray replica start them in the
same way."""

import os
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.processes.parent_death import SUPERVISOR_VARIABLE
from app.security.keys import KEYS_VARIABLE
from app.settings.settings import Settings

DISPATCHER = "dispatcher"  # the name of the process, and of its socket


@dataclass(frozen=True, slots=True)
class ProcessFiles:
    """The files of a process in the private folder."""

    folder: Path
    name: str

    @property
    def socket(self) -> Path:
        """The socket of the folder's dispatcher, the same for every process."""
        return self.folder / DISPATCHER

    @property
    def served(self) -> Path:
        """The list of the served models (app.messages.served_now), the same for every process."""
        return self.folder / "served-models"

    @property
    def heartbeat(self) -> Path:
        """Its heartbeat (app.processes.heartbeat)."""
        return self.folder / f"{self.name}.heartbeat"

    @property
    def reason(self) -> Path:
        """The reason why it could not start (app.processes.reports)."""
        return self.folder / f"{self.name}.reason"

    @property
    def learned(self) -> Path:
        """What it stores for its successor (app.worker.learned)."""
        return self.folder / f"{self.name}.learned"


def dispatcher_variables(files: ProcessFiles) -> dict[str, str]:
    """The variables of the dispatcher in addition to the settings."""
    return {
        "TRIMVIT_DISPATCHER_SOCKET": str(files.socket),
        "TRIMVIT_DISPATCHER_HEARTBEAT": str(files.heartbeat),
        "TRIMVIT_DISPATCHER_REASON": str(files.reason),
        "TRIMVIT_DISPATCHER_SERVED": str(files.served),
    }


def worker_variables(
    files: ProcessFiles, index: int, device: str, sharing: int, slots: int
) -> dict[str, str]:
    """The variables of a worker in addition to the settings. ``sharing``: the number of workers on its
    device. ``slots``: the descriptor of the shared memory."""
    return {
        "TRIMVIT_WORKER_INDEX": str(index),
        "TRIMVIT_WORKER_DEVICE": device,
        "TRIMVIT_WORKER_SHARING": str(sharing),
        "TRIMVIT_WORKER_SOCKET": str(files.socket),
        "TRIMVIT_WORKER_SLOTS": str(slots),
        "TRIMVIT_WORKER_HEARTBEAT": str(files.heartbeat),
        "TRIMVIT_WORKER_REASON": str(files.reason),
        "TRIMVIT_WORKER_LEARNED": str(files.learned),
        "TRIMVIT_WORKER_SERVED": str(files.served),
    }


def front_end_variables(
    files: ProcessFiles,
    index: int,
    reports: Path,
    listeners: Sequence[int],
    operations: Sequence[int],
    slots: int,
) -> dict[str, str]:
    """The variables of a front end in addition to the settings: see app.processes.programs."""
    return {
        "TRIMVIT_HTTP_INDEX": str(index),
        "TRIMVIT_HTTP_HEARTBEAT": str(files.heartbeat),
        "TRIMVIT_HTTP_REPORTS": str(reports),
        "TRIMVIT_HTTP_SOCKETS": " ".join(map(str, listeners)),
        "TRIMVIT_HTTP_OPERATIONS_SOCKETS": " ".join(map(str, operations)),
        "TRIMVIT_HTTP_DISPATCHER": str(files.socket),
        "TRIMVIT_HTTP_SLOTS": str(slots),
        "TRIMVIT_HTTP_REGIONS": str(files.folder / "regions"),
    }


def environment_of(
    settings: Settings, slot: str, variables: Mapping[str, str], *, keys: bool
) -> dict[str, str]:
    """The whole environment of a child whose metrics go into that slot. The API keys are only included if it
    checks them."""
    return {
        **{name: value for name, value in os.environ.items() if keys or name != KEYS_VARIABLE},
        **variables,
        SUPERVISOR_VARIABLE: str(os.getpid()),
        "TRIMVIT_METRICS_SLOT": slot,
        "TRIMVIT_SETTINGS": settings.model_dump_json(),
    }


PACKAGES_FOLDER = str(Path(__file__).parents[2])


def import_own_packages(environment: MutableMapping[str, str], import_path: Sequence[str]) -> None:
    """Let Python processes that are started later import the same packages as this one, whatever the current
    folder contains.

    Python started with ``-m`` looks for modules in the current folder first, and there may be another
    ``app``, as in most projects that use FastAPI, or a ``queue.py``. ``import_path`` is this process's
    sys.path. If it begins with the folder of these packages (a checkout that is not installed), they would
    not be found without it.
    """
    environment["PYTHONSAFEPATH"] = "1"
    if import_path and import_path[0] == PACKAGES_FOLDER:
        others = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([PACKAGES_FOLDER, *others]))


def leave_removed_folder() -> None:
    """In a current folder that was removed, as by a new release, MKL ends the process that first uses it."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        os.chdir("/")
