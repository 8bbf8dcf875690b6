"""Compare images/s with pixels in shared memory and with the same pixels as binary tensors, over HTTP to one
server.

    python -m benchmarks.shared_memory [--side 512] [--clients 4] [--rounds 5] [--seconds 3] [--instant]
        [--output FILE.json]

Each request has one image of random pixels and asks for its label and score. Requests are prebuilt. Rounds
are interleaved, after a warm-up. ``--instant`` uses workers that compute nothing, to measure only the host.
Reports images/s, the CPU time per image of the front end, and shared memory as a multiple of sockets within
each round. The time that a client needs to write pixels to the region is not included.
"""

import argparse
import json
import os
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path

import numpy as np

from app.http.routes.open_inference.tensors import HEADER_LENGTH
from benchmarks import machine
from benchmarks.report import by_way, spread, table, write
from benchmarks.sender import Sender, requests
from benchmarks.server import cpu_seconds, running
from models.bundled import BUNDLED_MODEL

_REGION = "benchmark"


def request_of(
    model: str, shape: tuple[int, ...], pixels: bytes, parameters: Mapping[str, object]
) -> list[bytes]:
    """Build an infer request with the pixels after its JSON."""
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": list(shape), "parameters": parameters}
    outputs = [{"name": name} for name in ("label", "score")]
    head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return requests(f"/v2/models/{model}/infer", [head + pixels], headers)


def register(port: int, key: str, size: int) -> None:
    """Register the region with the server. Raises RuntimeError if it is rejected."""
    connection = HTTPConnection("127.0.0.1", port)
    path = f"/v2/systemsharedmemory/region/{_REGION}/register"
    connection.request("POST", path, json.dumps({"key": key, "byte_size": size}))
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(response.read().decode())
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.shared_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--side", type=int, default=512, help="rows and columns of the image")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="that count; one more warms up")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each sample")
    parser.add_argument("--instant", action="store_true", help="workers that compute nothing")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    shape = (1, options.side, options.side, 3)
    pixels = np.random.default_rng(7).integers(0, 256, shape, np.uint8).tobytes()
    place = {"shared_memory_region": _REGION, "shared_memory_byte_size": len(pixels)}
    model = "instant" if options.instant else BUNDLED_MODEL
    memory = Path("/dev/shm", f"trimvit-benchmark-{os.getpid()}")
    memory.write_bytes(pixels)
    try:
        with running(
            "--shared-memory-bytes",
            str(len(pixels)),
            module="benchmarks.instant" if options.instant else "app.cli",
        ) as server:
            register(server.port, memory.name, len(pixels))
            senders = {
                "sockets": Sender(
                    server.port, request_of(model, shape, pixels, {"binary_data_size": len(pixels)})
                ),
                "shared memory": Sender(server.port, request_of(model, shape, b"", place)),
            }
            found: dict[str, dict[str, list[float]]] = {
                way: {"images/s": [], "front end, ms": []} for way in senders
            }
            for round_ in range(options.rounds + 1):
                for way, sender in senders.items():
                    before = cpu_seconds(server.pid)
                    ended = sender.closed_loop(options.clients, options.seconds)
                    if not ended or any(each.status != 200 for each in ended):
                        raise RuntimeError("not all were answered")
                    front_end = (cpu_seconds(server.pid)["http"] - before["http"]) * 1000 / len(ended)
                    if round_ > 0:
                        found[way]["images/s"].append(len(ended) / options.seconds)
                        found[way]["front end, ms"].append(front_end)
    finally:
        memory.unlink()
    sockets, shared = (found[way]["images/s"] for way in senders)
    ratio = spread([one / other for one, other in zip(shared, sockets, strict=True)])
    rows = by_way(found)
    print(table(rows))
    print(f"shared memory as a multiple of sockets: {ratio}")
    if options.output is not None:
        write(
            options.output,
            {
                "command": "python -m benchmarks.shared_memory" + (" --instant" if options.instant else ""),
                "machine": machine.describe(),
                "side": options.side,
                "clients": options.clients,
                "rows": rows,
                "shared_memory_over_sockets": ratio,
            },
        )


if __name__ == "__main__":
    main()
