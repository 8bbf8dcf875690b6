"""Run sweeps with NVIDIA's unmodified perf_analyzer: HTTP, gRPC and shared memory, encoded images and pixels.

    python -m benchmarks.perf_analyzer --program perf/bin/perf_analyzer [--photograph FILE]
        [--concurrency 1:9:4] [--window-ms 1000] [--output benchmarks/results/perf_analyzer.json]

Runs eight sweeps over concurrency, with a new server for each kind of input, in less than four minutes. The
figures are perf_analyzer's: the mean of its last windows. docs/perf-analyzer.md describes how to get the
program.
"""

import argparse
import base64
import csv
import json
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from benchmarks import machine
from benchmarks.report import Row, table, write
from benchmarks.server import running
from models.bundled import BUNDLED_MODEL

_PHOTOGRAPH = Path(__file__).parents[1] / "tests/photographs/china.jpg"
_SIDE = 224  # height and width of the pixel input
_REGIONS_BYTES = 200_000_000
_LIMIT_S = 120.0  # time limit of one sweep
# perf_analyzer's columns -> names in the results.
_COLUMNS = {
    "Concurrency": "concurrency",
    "Inferences/Second": "images/s",
    "p50 latency": "p50, ms",
    "p99 latency": "p99, ms",
    "Server Queue": "queue, ms",
    "Server Compute Input": "input, ms",
    "Server Compute Infer": "infer, ms",
    "Server Compute Output": "output, ms",
}
_US_PER_MS = 1000


def data_of(photograph: bytes) -> dict[str, object]:
    """Build perf_analyzer's input data with this image. A BYTES element is preceded by its length."""
    element = struct.pack("<I", len(photograph)) + photograph
    return {"data": [{"image": {"b64": base64.b64encode(element).decode()}}]}


def sweep(
    program: Path, where: Sequence[str], data: Sequence[str], concurrency: str, window_ms: int
) -> list[dict[str, float]]:
    """Run one sweep and return its rows. Raises RuntimeError with perf_analyzer's output if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.csv"
        command = [
            *(str(program), "-m", BUNDLED_MODEL, *where, *data),
            *("--concurrency-range", concurrency, "--measurement-interval", str(window_ms)),
            # Always three windows, regardless of how stable the results are, because the machine is noisy.
            *("--max-trials", "3", "--stability-percentage", "999", "-f", str(report)),
        ]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        if ended.returncode != 0 or not report.exists():
            raise RuntimeError(
                f"{' '.join(command)} ended with {ended.returncode}: {ended.stdout}{ended.stderr}"
            )
        with report.open(newline="") as rows:
            return sorted(map(_row, csv.DictReader(rows)), key=lambda row: row["concurrency"])


def _row(row: dict[str, str]) -> dict[str, float]:
    return {
        ours: float(row[theirs]) / (_US_PER_MS if ours.endswith("ms") else 1)
        for theirs, ours in _COLUMNS.items()
    }


def sweeps(program: Path, photograph: Path, concurrency: str, window_ms: int) -> Iterator[Row]:
    """Run all eight sweeps and yield their rows."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "image.json"
        images.write_text(json.dumps(data_of(photograph.read_bytes())))
        data = {
            "image": ["--input-data", str(images)],
            "pixels": ["--shape", f"pixels:{_SIDE},{_SIDE},3"],
        }
        for name, given in data.items():
            grpc = _free_port()
            flags = ("--grpc-port", str(grpc), "--shared-memory-bytes", str(_REGIONS_BYTES))
            with running(*flags, "--open-inference-input", name) as server:
                protocols = {
                    "HTTP": ["-u", f"127.0.0.1:{server.port}"],
                    "gRPC": ["-i", "grpc", "-u", f"127.0.0.1:{grpc}"],
                }
                for (protocol, where), memory in product(protocols.items(), ("none", "system")):
                    rows = sweep(program, [*where, "--shared-memory", memory], given, concurrency, window_ms)
                    for row in rows:
                        yield {"input": name, "protocol": protocol, "shared memory": memory, **row}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.perf_analyzer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--program", type=Path, required=True, help="perf_analyzer, or what starts it")
    parser.add_argument("--photograph", type=Path, default=_PHOTOGRAPH, help="the encoded image")
    parser.add_argument("--concurrency", default="1:9:4", help="from:to:step")
    parser.add_argument("--window-ms", type=int, default=1000, help="of which each point takes three")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results/perf_analyzer.json", help="JSON file"
    )
    options = parser.parse_args()
    rows = list(sweeps(options.program, options.photograph, options.concurrency, options.window_ms))
    print(table(rows))
    write(
        options.output,
        {
            "command": f"python -m benchmarks.perf_analyzer --concurrency {options.concurrency}",
            "machine": machine.describe(),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
