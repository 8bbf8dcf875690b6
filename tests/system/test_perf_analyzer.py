"""NVIDIA's perf_analyzer, unmodified, completes sweeps over HTTP, gRPC and shared memory."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.perf_analyzer import data_of, sweep
from models.bundled import BUNDLED_MODEL
from tests.system.photographs import SHIPPED
from tests.system.server import Server, free_port, running_server

pytestmark = pytest.mark.long

FOUND = os.environ.get("TRIMVIT_TEST_PERF_ANALYZER") or shutil.which("perf_analyzer")


@pytest.fixture(scope="module")
def program() -> Path:
    if FOUND is None:
        pytest.skip(
            "perf_analyzer is not on the path, nor named by TRIMVIT_TEST_PERF_ANALYZER; pip install "
            "perf-analyzer has it for systems with glibc 2.38 or later (docs/perf-analyzer.md)"
        )
    return Path(FOUND)


@pytest.fixture(scope="module", params=["image", "pixels"])
def served(
    request: pytest.FixtureRequest, calibrated: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, list[str]]]:
    """A server of two front ends that takes this input, and where its data comes from. Its network is small:
    perf_analyzer fails where no request ends within a window."""
    folder = tmp_path_factory.mktemp("perf-analyzer")
    model = ("--model", f"{BUNDLED_MODEL}={calibrated}", "--http-workers", "2")
    flags = (*model, "--grpc-port", str(free_port()), "--shared-memory-bytes", "200000000")
    if request.param == "image":
        file = folder / "image.json"
        file.write_text(json.dumps(data_of((SHIPPED / "china.jpg").read_bytes())))
        data = ["--input-data", str(file)]
    else:
        data = ["--shape", "pixels:224,224,3"]
    with running_server(folder, *flags, "--open-inference-input", request.param) as server:
        yield server, data


@pytest.mark.parametrize("memory", ["none", "system"])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_sweep_comes_to_its_end(
    program: Path, served: tuple[Server, list[str]], protocol: str, memory: str, batch: int
) -> None:
    """With a row for each concurrency, and the server's own statistics in it: they are what perf_analyzer has
    counted, and their phases are within the latency."""
    server, data = served
    address = server.url.removeprefix("http://") if protocol == "http" else server.grpc
    where = ["-i", protocol, "-u", address, "--shared-memory", memory, "-b", str(batch)]
    rows = sweep(program, where, data, "1:3:2", 1000)
    assert [row["concurrency"] for row in rows] == [1, 3]
    for row in rows:
        assert row["images/s"] > 0
        assert row["infer, ms"] > 0
        parts = sum(row[f"{part}, ms"] for part in ("queue", "input", "infer", "output"))
        assert parts <= 2 * row["p99, ms"]
