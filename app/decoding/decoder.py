"""A decoding process: `python -m app.decoding.decoder`, started by a front end.

It receives untrusted bytes over a socket and writes pixels into memory that its parent reads. It has no
secrets, its memory is limited, and its parent kills it if an image takes too long. It does not trust the
images, and its parent does not trust its answers.
"""

import os
import resource
import signal
import socket
import struct
import sys
from functools import lru_cache

import msgspec
from setproctitle import setproctitle

from app.decoding.images import ImageLimits, decode
from app.decoding.shared_pixels import PixelsWriter
from app.errors import Problem, TooLarge
from app.processes.heap import keep_memory_of_usual_images
from app.processes.parent_death import die_with_parent
from models.transforms import InputSpec

SOCKET_VARIABLE = "TRIMVIT_DECODER_SOCKET"
PIXELS_VARIABLE = "TRIMVIT_DECODER_PIXELS"
MEMORY_VARIABLE = "TRIMVIT_DECODER_MEMORY_BYTES"

_READ_BYTES = 2**16  # most images of the model's input size arrive in one read

# Sent once, when the process is ready for images.
STARTED = b"!"
# Precedes each message: the sizes in bytes of its head (MessagePack) and of the encoded image after it. In an
# answer, the second is the size of the pixels, which are in shared memory.
SIZES = struct.Struct("<IQ")


class Task(msgspec.Struct, frozen=True, array_like=True):
    """How an image is to be decoded."""

    spec: InputSpec
    limits: ImageLimits


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """The outcome of an image: pixels with warnings, or the slug and the detail of a problem."""

    slug: str | None = None
    detail: str = ""
    warnings: tuple[str, ...] = ()


def serve(connection: socket.socket, writer: PixelsWriter, memory_bytes: int) -> None:
    """Report that it has started, and decode one image after the other until the parent closes the
    connection."""
    connection.sendall(STARTED)
    received = connection.makefile("rb", _READ_BYTES)
    while len(sizes := received.read(SIZES.size)) == SIZES.size:
        head, body = SIZES.unpack(sizes)
        task = _task(received.read(head))
        data = received.read(body)
        try:
            seen = decode(data, task.spec, task.limits)
        except MemoryError:
            problem: Problem = TooLarge(
                f"decoding the image takes more than the {memory_bytes // 2**20} MB of memory allowed; "
                "send a smaller image"
            )
            _answer(connection, Outcome(problem.slug, problem.detail))
        except Problem as problem:
            _answer(connection, Outcome(problem.slug, problem.detail))
        else:
            writer.write(seen.pixels)
            _answer(connection, Outcome(warnings=seen.warnings), seen.pixels.nbytes)


@lru_cache(8)
def _task(head: bytes) -> Task:
    return msgspec.msgpack.decode(head, type=Task)


def _answer(connection: socket.socket, outcome: Outcome, pixels: int = 0) -> None:
    head = msgspec.msgpack.encode(outcome)
    connection.sendall(SIZES.pack(len(head), pixels) + head)


def main() -> None:
    """Limit what this process may do, then decode."""
    die_with_parent()
    setproctitle("trimvit: decode")
    for number in (signal.SIGTERM, signal.SIGINT):  # the parent still needs this process while it drains
        signal.signal(number, signal.SIG_IGN)
    keep_memory_of_usual_images()
    memory_bytes = int(os.environ[MEMORY_VARIABLE])
    if sys.platform.startswith("linux"):  # other systems count more memory, or do not support the limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # core files could contain photographs
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    # libtiff writes warnings about images to standard error, so clients could fill the log.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    with socket.socket(fileno=int(os.environ[SOCKET_VARIABLE])) as connection:
        serve(connection, PixelsWriter(int(os.environ[PIXELS_VARIABLE])), memory_bytes)


if __name__ == "__main__":
    main()
