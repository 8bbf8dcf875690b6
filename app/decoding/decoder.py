"""A decoding process: `python -m app.decoding.decoder`, started by a front end.

Untrusted bytes in, pixels out. It has no secrets, its memory is limited, and its parent kills it when an
image takes too long. It trusts nothing that it decodes, and its parent trusts nothing that it answers.
"""

import os
import resource
import signal
import socket
import struct
import sys

import msgspec
from setproctitle import setproctitle

from app.decoding.images import ImageLimits, decode
from app.errors import Problem, TooLarge
from app.processes.lifeline import die_with_parent
from models.transforms import InputSpec

SOCKET_VARIABLE = "TRIMVIT_DECODER_SOCKET"
MEMORY_VARIABLE = "TRIMVIT_DECODER_MEMORY_BYTES"

# Sent once, as soon as images are taken.
STARTED = b"!"
# Before each message: the bytes of its head (MessagePack) and of its body (an encoded image, or pixels).
SIZES = struct.Struct("<IQ")


class Task(msgspec.Struct, frozen=True, array_like=True):
    """Decode the body so."""

    spec: InputSpec
    limits: ImageLimits


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """What came of it: pixels in the body, with warnings, or a problem's slug and detail."""

    slug: str | None = None
    detail: str = ""
    warnings: tuple[str, ...] = ()


def serve(connection: socket.socket, memory_bytes: int) -> None:
    """Say that it has started, and decode one image after the other until the parent hangs up."""
    tasks = msgspec.msgpack.Decoder(Task)
    connection.sendall(STARTED)
    while sizes := _receive(connection, SIZES.size):
        head, body = SIZES.unpack(sizes)
        task = tasks.decode(_receive(connection, head))
        data = bytes(_receive(connection, body))
        try:
            seen = decode(data, task.spec, task.limits)
        except MemoryError:
            problem: Problem = TooLarge(
                f"decoding the image takes more than the {memory_bytes // 2**20} MB of memory allowed"
            )
            _send(connection, Outcome(problem.slug, problem.detail))
        except Problem as problem:
            _send(connection, Outcome(problem.slug, problem.detail))
        else:
            _send(connection, Outcome(warnings=seen.warnings), seen.pixels.tobytes())


def _receive(connection: socket.socket, size: int) -> bytearray:
    """Exactly so many bytes; none where the parent has hung up before the first."""
    received = bytearray(size)
    view, place = memoryview(received), 0
    while place < size:
        count = connection.recv_into(view[place:])
        if count == 0:
            return bytearray()
        place += count
    return received


def _send(connection: socket.socket, outcome: Outcome, body: bytes = b"") -> None:
    head = msgspec.msgpack.encode(outcome)
    connection.sendall(SIZES.pack(len(head), len(body)) + head + body)


def main() -> None:
    """Give up what is not needed, then decode."""
    die_with_parent()
    setproctitle("trimvit: decode")
    for number in (signal.SIGTERM, signal.SIGINT):  # its parent still needs it while it drains
        signal.signal(number, signal.SIG_IGN)
    memory_bytes = int(os.environ[MEMORY_VARIABLE])
    if sys.platform.startswith("linux"):  # others count more, or refuse
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold somebody's photograph
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    # libtiff says on standard error what it thinks of an image; anyone could fill the log with it.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    with socket.socket(fileno=int(os.environ[SOCKET_VARIABLE])) as connection:
        serve(connection, memory_bytes)


if __name__ == "__main__":
    main()
