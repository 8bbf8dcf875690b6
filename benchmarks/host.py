"""Measure the cost of an image on the host, compared with the minimum that an HTTP server needs for a
request.

    python -m benchmarks.host --photographs FOLDER [--rounds 5] [--seconds 2] [--output FILE.json]

Two servers on the same cores take turns, after a warm-up: `trimvit serve` with workers that compute nothing
(benchmarks.instant), and a FastAPI route that only reads the body (benchmarks.bare), in one process with the
same HTTP parser and event loop. Clients send requests in a closed loop. The loads are
  small    JPEGs of about 7 KB: the folder's photographs, resized to the model's input
  large    the folder's original photographs (about 110 KB in the published figures)
  pixels   pixels of the model's input size over /v2, as binary data
and, if selected by --loads, the small JPEGs for their embeddings
  embed           as JSON numbers
  embed_base64    as base64 in JSON
  embed_binary    as bytes
Reports requests/s, latencies and the CPU time per request (user and system) of each kind of process, as
medians over the rounds (quartiles; extremes). Ratios are computed within a round. The CPU time of the
decoders is compared with decoding the same images in a plain loop. `generator` is the process that sends the
requests. On a shared machine, ratios and CPU times are more reliable than rates.
"""

import argparse
import contextlib
import gc
import io
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from app.decoding.images import ImageLimits, decode
from benchmarks import machine
from benchmarks.photographs import image_files
from benchmarks.report import Row, Spread, spread, table, write
from benchmarks.sender import JPEG, Sender, requests
from benchmarks.server import cpu_seconds, end, running
from models.transforms import InputSpec

LOOP = "asyncio"  # the event loop of the server's HTTP processes
SPEC = InputSpec((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LIMITS = ImageLimits(64_000_000)
QUALITY = 42  # JPEG quality of the small images
SETTLING_S = 1.0
USUAL = ("small", "large", "pixels")
EMBEDDING = ("embed", "embed_base64", "embed_binary")

Cpu = Callable[[], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Load:
    """Request bodies, with the path and headers. ``files``: the images that must be decoded."""

    path: str
    headers: Mapping[str, str]
    bodies: Sequence[bytes]
    files: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """The result of one server under one load in a round."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: Mapping[str, float]  # per request, by kind of process; `generator` is the sender


def loads_of(photographs: Sequence[bytes]) -> dict[str, Load]:
    """Build all loads from photographs."""
    small = [reduced(each) for each in photographs]
    as_bytes = {**JPEG, "Accept": "application/octet-stream"}
    return {
        "small": Load("/v1/classify", JPEG, small, small),
        "large": Load("/v1/classify", JPEG, photographs, photographs),
        "pixels": pixels_load([decode(each, SPEC, LIMITS).pixels for each in photographs]),
        "embed": Load("/v1/embed", JPEG, small, small),
        "embed_base64": Load("/v1/embed?encoding=base64", JPEG, small, small),
        "embed_binary": Load("/v1/embed", as_bytes, small, small),
    }


def reduced(photograph: bytes) -> bytes:
    """Return the preprocessed photograph, as the model gets it, as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(decode(photograph, SPEC, LIMITS).pixels).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def pixels_load(pictures: Sequence[np.ndarray]) -> Load:
    """Build infer requests with each image as a binary tensor. They ask for labels and scores."""
    height, width = SPEC.size
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "pixels",
                    "datatype": "UINT8",
                    "shape": [1, height, width, 3],
                    "parameters": {"binary_data_size": height * width * 3},
                }
            ],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in ("label", "score")],
        }
    ).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return Load("/v2/models/instant/infer", headers, [head + each.tobytes() for each in pictures])


def sample(sender: Sender, cpu: Cpu, clients: int, seconds: float) -> Sample:
    """Send a load for ``seconds``. Raises RuntimeError if a status is not 200."""
    before, own = cpu(), time.process_time()
    ended = sender.closed_loop(clients, seconds)
    after, own = cpu(), time.process_time() - own
    if not ended or any(each.status != 200 for each in ended):
        raise RuntimeError(f"answered were {sorted({each.status for each in ended})}, not only 200")
    p50, p99 = np.quantile([each.done_s - each.due_s for each in ended], (0.5, 0.99)) * 1000
    taken = {kind: after[kind] - before.get(kind, 0.0) for kind in after} | {"generator": own}
    cpu_ms = {kind: value * 1000 / len(ended) for kind, value in taken.items()}
    return Sample(len(ended) / seconds, float(p50), float(p99), cpu_ms)


def decode_ms(files: Sequence[bytes], seconds: float) -> float:
    """Return the CPU time per image, in milliseconds, of decoding in a plain loop for ``seconds``."""
    began, images = time.process_time(), 0
    while (taken := time.process_time() - began) < seconds or images < len(files):
        decode(files[images % len(files)], SPEC, LIMITS)
        images += 1
    return taken * 1000 / images


@contextlib.contextmanager
def bare(loop: str) -> Iterator[tuple[int, Cpu]]:
    """Run benchmarks.bare in a process. Yields its port, and a function that returns its CPU time."""
    command = [sys.executable, "-m", "benchmarks.bare", loop]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())

        def cpu() -> dict[str, float]:
            times = psutil.Process(process.pid).cpu_times()
            return {"bare": times.user + times.system}

        yield port, cpu
    finally:
        end(process)


def row_of(
    name: str, clients: int, samples: Mapping[str, Sequence[Sample]], plain_ms: Sequence[float]
) -> Row:
    """Compute the row of one load and number of clients. ``plain_ms``: CPU time of plain decoding per
    round."""
    ours, least = samples["trimvit"], samples["bare"]

    def both(figure: Callable[[Sample], float]) -> tuple[Spread, Spread, Spread]:
        """Return the spread for the server, for the bare route, and of their ratio."""
        pairs = [(figure(one), figure(other)) for one, other in zip(ours, least, strict=True)]
        values = (
            [one for one, _ in pairs],
            [other for _, other in pairs],
            [one / other for one, other in pairs],
        )
        return spread(values[0]), spread(values[1]), spread(values[2])

    row: dict[str, object] = {"load": name, "clients": clients}
    row["per_s"], row["bare_per_s"], row["share_of_bare"] = both(lambda each: each.per_s)
    row["p50_ms"], row["bare_p50_ms"], _ = both(lambda each: each.p50_ms)
    row["p99_ms"], row["bare_p99_ms"], _ = both(lambda each: each.p99_ms)
    waits = [
        (one.p50_ms - decoding - other.p50_ms) / other.p50_ms
        for one, other, decoding in zip(ours, least, plain_ms or [0.0] * len(ours), strict=True)
    ]
    row["p50_beyond_bare_and_decoding"] = spread(waits)  # as a multiple of the bare route's p50
    for kind in sorted({kind for each in ours for kind in each.cpu_ms}):
        row[f"{kind}_cpu_ms"] = spread([each.cpu_ms.get(kind, 0.0) for each in ours])
    row["bare_cpu_ms"] = spread([each.cpu_ms["bare"] for each in least])
    row["bare_generator_cpu_ms"] = spread([each.cpu_ms["generator"] for each in least])
    pairs = list(zip(ours, least, strict=True))
    row["http_cpu_times_bare"] = spread([one.cpu_ms["http"] / other.cpu_ms["bare"] for one, other in pairs])
    if plain_ms:
        row["plain_decode_cpu_ms"] = spread(plain_ms)
        times = [each.cpu_ms["decode"] / plain for each, plain in zip(ours, plain_ms, strict=True)]
        row["decode_cpu_times_plain"] = spread(times)
    return row


def told(row: Row) -> str:
    """Format the figures of a row as a table with one figure per line."""
    return table([{"figure": key, "value": value} for key, value in row.items() if isinstance(value, Spread)])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.host", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--loads", nargs="+", default=USUAL, choices=(*USUAL, *EMBEDDING))
    parser.add_argument("--clients", type=int, nargs="+", default=(1, 16, 64))
    parser.add_argument("--rounds", type=int, default=5, help="that count; one more warms up")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each sample")
    parser.add_argument("--most-photographs", type=int, default=64)
    parser.add_argument("--bare-loop", default=LOOP, choices=("asyncio", "uvloop"))
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=(), help="flags of trimvit serve")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    files = image_files(options.photographs)[: options.most_photographs]
    loads = loads_of([file.read_bytes() for file in files])
    loads = {name: loads[name] for name in options.loads}
    left_out = ("photographs", "output")
    report = {
        "command": "python -m benchmarks.host",
        "machine": machine.describe(),
        "options": {key: value for key, value in vars(options).items() if key not in left_out},
        "kilobytes": {
            name: round(sum(map(len, load.bodies)) / len(load.bodies) / 1000, 1)
            for name, load in loads.items()
        },
    }
    gc.disable()  # this process creates no reference cycles
    rows = []
    with (
        running(*options.serve, module="benchmarks.instant") as server,
        bare(options.bare_loop) as (bare_port, bare_cpu),
    ):
        for name, load in loads.items():
            senders = {
                "trimvit": Sender(server.port, requests(load.path, load.bodies, load.headers)),
                "bare": Sender(bare_port, requests("/", load.bodies, load.headers)),
            }
            cpus: dict[str, Cpu] = {"trimvit": lambda: cpu_seconds(server.pid), "bare": bare_cpu}
            for clients in options.clients:
                rows.append(measured(name, load, clients, senders, cpus, options))
                if options.output is not None:
                    write(options.output, {**report, "results": rows})
                print(f"{name}, {clients} clients\n{told(rows[-1])}\n", flush=True)


def measured(
    name: str,
    load: Load,
    clients: int,
    senders: Mapping[str, Sender],
    cpus: Mapping[str, Cpu],
    options: argparse.Namespace,
) -> Row:
    """Run all rounds of one load with this number of clients."""
    samples: dict[str, list[Sample]] = {way: [] for way in senders}
    plain_ms: list[float] = []
    draw, order = random.Random(0), list(senders)
    for round_ in range(options.rounds + 1):
        draw.shuffle(order)
        for way in order:
            found = sample(senders[way], cpus[way], clients, options.seconds)
            if round_ > 0:  # the first round is a warm-up
                samples[way].append(found)
        if load.files and round_ > 0:
            plain_ms.append(decode_ms(load.files, options.seconds / 4))
    return row_of(name, clients, samples, plain_ms)


if __name__ == "__main__":
    main()
