"""`trimvit` with workers that do as the images and a folder say: die, hang, fail to load. They are real
processes that compute nothing, so they are there in a moment. Run as `python -m tests.system.faulty`."""

import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from tests.system.server import Server, running_server

FOLDER_VARIABLE = "TRIMVIT_TEST_FAULTS"
QUICK_VARIABLE = "TRIMVIT_TEST_QUICK_RESTARTS"
HANG_IN_LOADING = "hang-in-loading"  # a file of this name in the folder: further models hang
FAIL_TO_LOAD = "fail-to-load"  # a file of this name in the folder
SECONDS_PER_BATCH = "seconds-per-batch"  # a file that holds the number
LOADS = "loads"  # a file with a letter for each load of the model
PATIENT = {"--default-deadline-ms": "300000", "--restart-wait-s": "300", "--shutdown-grace-s": "300"}
PROGRAM = (sys.executable, "-m", "tests.system.faulty")

# Images are known by their colour.
HARMLESS, KILLS, HANGS, HOLDS_THE_LOCK, TOO_LARGE = (
    (9, 9, 9),
    (250, 0, 0),
    (0, 250, 0),
    (0, 0, 250),
    (250, 250, 0),
)


def picture(colour: tuple[int, int, int] = HARMLESS) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (35, 21), colour).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def faulty_server(
    folder: Path, *flags: str, seconds_per_batch: float = 0.0, quick_restarts: bool = False
) -> Iterator[Server]:
    """A server whose workers look into ``folder`` for what they are to do. It is patient unless the flags
    say otherwise: on a crowded machine a worker's start alone takes many seconds. ``quick_restarts``: it
    waits a tenth of what it waits between two starts."""
    for flag, value in PATIENT.items():
        if flag not in flags:
            flags = (*flags, flag, value)
    (folder / SECONDS_PER_BATCH).write_text(str(seconds_per_batch))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(folder))
        if quick_restarts:
            patch.setenv(QUICK_VARIABLE, "1")
        with running_server(folder, *flags, program=PROGRAM) as server:
            yield server


def worker() -> None:
    """What the supervisor starts in place of app.worker.process."""
    import ctypes
    import signal

    import msgspec

    from app.messages.capacity import Limits
    from app.messages.image import Prediction
    from app.settings.settings import Settings
    from app.worker.backend import Job, Loaded
    from app.worker.process import WorkerArgs, main, make_loop
    from app.worker.streams import OnAll
    from tests.app.dispatch.rig import FakeBackend, measured
    from tests.app.fakes import MODEL

    folder = Path(os.environ[FOLDER_VARIABLE])

    class OutOfMemoryError(RuntimeError):
        """Named as torch's."""

    class Faulty(FakeBackend):
        limits = Limits(batch_tokens=100, threads=2, streams=2)

        def load(self, on_all: OnAll) -> Loaded:
            if (folder / FAIL_TO_LOAD).exists():
                raise RuntimeError("told to fail")
            with (folder / LOADS).open("a") as loads:
                loads.write("!")
            return Loaded(self.model, self.limits, measured(self.limits))

        def classify(self, jobs: Sequence[Job], threads: int) -> Sequence[Prediction]:
            colours = [tuple(job.pixels[:3].tolist()) for job in jobs]
            time.sleep(float((folder / SECONDS_PER_BATCH).read_text()))
            if KILLS in colours:
                os.kill(os.getpid(), signal.SIGKILL)
            if HANGS in colours:
                time.sleep(100_000)
            if HOLDS_THE_LOCK in colours:
                ctypes.PyDLL(None).sleep(100_000)
            if TOO_LARGE in colours and len(jobs) > 1:
                raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return [self.result(job) for job in jobs]

    class Further(Faulty):
        """A model that is loaded while others are served."""

        def load(self, on_all: OnAll) -> Loaded:
            if (folder / HANG_IN_LOADING).exists():
                time.sleep(100_000)
            return super().load(on_all)

    def further(name: str) -> Faulty:
        return Further(Faulty.limits, model=msgspec.structs.replace(MODEL, name=name))

    def compute(settings: Settings, args: WorkerArgs) -> None:
        make_loop(settings, args, [Faulty(Faulty.limits)], f"cpu:{args.index}", further).run()

    main(compute)


if __name__ == "__main__":
    if "TRIMVIT_WORKER_INDEX" in os.environ:
        worker()
    else:
        from app import cli
        from app.processes import programs, restarts

        programs.WORKER, programs.PRELOADED = "tests.system.faulty", ()
        if QUICK_VARIABLE in os.environ:
            restarts._SPACING_S = tuple(seconds / 10 for seconds in restarts._SPACING_S)
        cli.main()
