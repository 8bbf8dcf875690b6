"""A replica's processes, its dispatcher and its worker: kept running like those of a server
(app.processes.keeper), in a thread of their own."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence

from app.processes import background
from app.processes.keeper import End, Keeper, Program, drain
from app.settings.settings import Settings


class Processes:
    """Keeps these programs running.

    ``give_up`` is called in the thread with the reason if one of them never became ready, or if its starts
    fail repeatedly: then another replica, perhaps on another node, has a better chance.
    """

    def __init__(
        self, settings: Settings, programs: Sequence[Program], give_up: Callable[[str], None]
    ) -> None:
        self._settings, self._programs, self._give_up = settings, programs, give_up
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        # The processes end when the thread that started them ends (app.processes.parent_death).
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start them. A worker may take a while to load."""
        self._thread = background.thread(self._run, "keeper of a replica's processes", self._failed)

    def stop(self) -> None:
        """End them, one after the other, each once it has finished what it accepted. The rest is killed after
        the grace time."""
        if self._thread is not None:
            with contextlib.suppress(RuntimeError):  # the thread has failed and closed the loop
                self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._keep())
        finally:
            self._loop.close()

    async def _keep(self) -> None:
        keepers = [Keeper(self._settings, program, self._goes_on(program)) for program in self._programs]
        keeping = [background.needed(keeper.run, "keeper of a process", self._give_up) for keeper in keepers]
        await self._stopping.wait()
        await drain([[keeper] for keeper in keepers], self._settings.shutdown_grace_s)
        await asyncio.gather(*keeping)

    def _goes_on(self, program: Program) -> Callable[[End], bool]:
        name = program.files.name

        def goes_on(end: End) -> bool:
            if end.error is not None:
                self._give_up(f"{name} cannot be kept running: {end.reason}")
            elif not end.came_up or end.given_up:
                self._give_up(f"{name} does not start: {end.reason}")
            else:
                return True
            return False

        return goes_on

    def _failed(self, error: BaseException) -> None:
        """Give up: nobody keeps the processes, which end with the thread."""
        if not self._stopping.is_set():
            self._give_up(f"its processes cannot be kept running: {type(error).__name__}: {error}")
