"""Compare images/s over gRPC and over HTTP, with the same requests to one server on the same cores.

    python -m benchmarks.grpc_beside_http --photographs FOLDER [--rounds 5] [--seconds 3] [--instant]
        [--output FILE.json]

Both use the Open Inference Protocol. Each request has one photograph and asks for its label and score.
Requests are prebuilt and come from the same number of clients. Rounds are interleaved, after a warm-up.
``--instant`` uses workers that compute nothing, to measure only the host. Reports images/s, the CPU time per
image of the front end and of the client process, and gRPC as a share of HTTP within each round. The gRPC
client needs more CPU time than the HTTP client, at the expense of the server.
"""

import argparse
import asyncio
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grpc

from app.grpc.inference import request_of
from app.grpc.protocol import SERVICE, message_class
from app.http.routes.open_inference.tensors import HEADER_LENGTH, write_elements
from benchmarks import machine
from benchmarks.photographs import image_files
from benchmarks.report import by_way, spread, table, write
from benchmarks.sender import Sender, requests
from benchmarks.server import cpu_seconds, running
from models.bundled import BUNDLED_MODEL


def messages_of(model: str, photographs: Sequence[bytes]) -> list[object]:
    """Build a ModelInferRequest for each photograph."""
    messages = []
    for photograph in photographs:
        message = message_class("ModelInferRequest")(model_name=model)
        message.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
        message.raw_input_contents.append(write_elements([photograph]))
        for name in ("label", "score"):
            message.outputs.add(name=name)
        messages.append(message)
    return messages


def http_requests(model: str, messages: Sequence[object]) -> list[bytes]:
    """Convert the messages to HTTP requests."""
    made = []
    for message in messages:
        parts, json_bytes = request_of(message, None)
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(json_bytes)}
        made += requests(f"/v2/models/{model}/infer", [b"".join(parts)], headers)
    return made


async def over_grpc(target: str, messages: Sequence[bytes], clients: int, seconds: float) -> int:
    """Send requests in a closed loop for ``seconds``, and return the number of images answered."""
    until, answered = time.perf_counter() + seconds, 0

    async def client(first: int) -> None:
        nonlocal answered
        options = (("grpc.use_local_subchannel_pool", 1),)  # a separate connection per client
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            number = first
            while time.perf_counter() < until:
                await call(messages[number % len(messages)])
                number, answered = number + clients, answered + 1

    await asyncio.gather(*(client(number) for number in range(clients)))
    return answered


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.grpc_beside_http",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--photographs", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5, help="that count; one more warms up")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each sample")
    parser.add_argument("--instant", action="store_true", help="workers that compute nothing")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    photographs = [file.read_bytes() for file in image_files(options.photographs)[:64]]
    model = "instant" if options.instant else BUNDLED_MODEL
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    messages = messages_of(model, photographs)
    serialized = [message.SerializeToString() for message in messages]  # type: ignore[attr-defined]
    module = "benchmarks.instant" if options.instant else "app.cli"
    with running("--grpc-port", str(port), module=module) as server:
        sender = Sender(server.port, http_requests(model, messages))

        def http() -> int:
            ended = sender.closed_loop(options.clients, options.seconds)
            if any(each.status != 200 for each in ended):
                raise RuntimeError("not all were answered")
            return len(ended)

        def grpc_() -> int:
            return asyncio.run(over_grpc(f"127.0.0.1:{port}", serialized, options.clients, options.seconds))

        ways: Mapping[str, Callable[[], int]] = {"http": http, "grpc": grpc_}
        found: dict[str, dict[str, list[float]]] = {
            way: {"images/s": [], "front end, ms": [], "client, ms": []} for way in ways
        }
        for round_ in range(options.rounds + 1):
            for way, run in ways.items():
                before, own = cpu_seconds(server.pid), time.process_time()
                images = run()
                own = (time.process_time() - own) * 1000 / images
                front_end = (cpu_seconds(server.pid)["http"] - before["http"]) * 1000 / images
                if round_ > 0:
                    for name, value in zip(
                        found[way], (images / options.seconds, front_end, own), strict=True
                    ):
                        found[way][name].append(value)
    shares = [
        one / other for one, other in zip(found["grpc"]["images/s"], found["http"]["images/s"], strict=True)
    ]
    rows = by_way(found)
    print(table(rows))
    print(f"gRPC as a share of HTTP: {spread(shares)}")
    if options.output is not None:
        write(
            options.output,
            {
                "command": "python -m benchmarks.grpc_beside_http"
                + (" --instant" if options.instant else ""),
                "machine": machine.describe(),
                "clients": options.clients,
                "rows": rows,
                "grpc_share_of_http": spread(shares),
            },
        )


if __name__ == "__main__":
    main()
