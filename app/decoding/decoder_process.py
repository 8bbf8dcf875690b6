"""One decoding process, as its parent sees it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import msgspec
import numpy as np

from app.decoding.decoder import MEMORY_VARIABLE, SIZES, SOCKET_VARIABLE, STARTED, Outcome, Task
from app.decoding.images import Data, ImageLimits, ModelInput
from app.errors import TooLarge, UndecodableImage, UnsupportedMediaType
from app.processes.lifeline import SUPERVISOR_VARIABLE
from models.transforms import InputSpec

_LONGEST_HEAD = 65_536

_PROBLEMS = {problem.slug: problem for problem in (TooLarge, UndecodableImage, UnsupportedMediaType)}

# What a decoding process may see of the environment: where Python is, and no secrets.
_ENVIRONMENT = (
    "PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONSAFEPATH",
    "LD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "VIRTUAL_ENV",
)


class Died(Exception):
    """The process is gone, or talks nonsense."""


class DecoderProcess:
    """One decoding process, asked by one thread at a time."""

    def __init__(self, memory_bytes: int) -> None:
        """Raises OSError where the system has no room for another process or its socket."""
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as on_failure, theirs:
            on_failure.callback(ours.close)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app.decoding.decoder"],
                env={
                    **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    "OPENBLAS_NUM_THREADS": "1",
                    SUPERVISOR_VARIABLE: str(os.getpid()),
                    SOCKET_VARIABLE: str(theirs.fileno()),
                    MEMORY_VARIABLE: str(memory_bytes),
                },
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            on_failure.pop_all()
        self._connection = ours
        self._started = False

    def wait_until_started(self, within_s: float) -> None:
        """Nothing where it has said so before. Raises TimeoutError or Died."""
        if not self._started:
            try:
                said = self._receive(len(STARTED), time.monotonic() + within_s)
            except TimeoutError:
                raise
            except OSError as error:
                raise Died(str(error)) from error
            if said != STARTED:
                raise Died("it said something else")
            self._started = True

    def decode(self, data: Data, spec: InputSpec, limits: ImageLimits, timeout_s: float) -> ModelInput:
        """Raises the Problem that the process found, TimeoutError, or Died."""
        deadline = time.monotonic() + timeout_s
        head = msgspec.msgpack.encode(Task(spec, limits))
        try:
            self._wait_until(deadline)
            self._connection.sendall(SIZES.pack(len(head), len(data)) + head)
            self._connection.sendall(data)
            head_size, body_size = SIZES.unpack(self._receive(SIZES.size, deadline))
            if head_size > _LONGEST_HEAD:
                raise Died("it answered out of turn")
            outcome = msgspec.msgpack.decode(self._receive(head_size, deadline), type=Outcome)
            shape = (*spec.size, 3)
            if body_size != (0 if outcome.slug else np.prod(shape)):
                raise Died("it answered with another size")
            body = self._receive(body_size, deadline)
        except TimeoutError:
            raise
        except (OSError, msgspec.DecodeError) as error:
            raise Died(str(error)) from error
        if outcome.slug is None:
            return ModelInput(np.frombuffer(body, np.uint8).reshape(shape), outcome.warnings)
        raise _PROBLEMS.get(outcome.slug, UndecodableImage)(outcome.detail)

    def _wait_until(self, deadline: float) -> None:
        """Raises TimeoutError where the deadline has passed; what follows on the socket raises it then."""
        rest = deadline - time.monotonic()
        if rest <= 0:
            raise TimeoutError
        self._connection.settimeout(rest)

    def _receive(self, size: int, deadline: float) -> bytearray:
        received = bytearray(size)
        view, place = memoryview(received), 0
        while place < size:
            self._wait_until(deadline)
            count = self._connection.recv_into(view[place:])
            if count == 0:
                raise Died("it hung up")
            place += count
        return received

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Whoever waits for it hears that it died."""
        self._process.kill()

    def end(self, grace_s: float = 0) -> str:
        """Kill it, if it still runs after the grace time, and say how it ended."""
        self._connection.close()
        try:
            ended = self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return "was killed"
        return f"ended by {signal.Signals(-ended).name}" if ended < 0 else f"ended with exit code {ended}"
