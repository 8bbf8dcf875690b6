"""The whole way, in real processes, with the bundled model."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.system.photographs import SHIPPED, photographs
from tests.system.server import CLIENT, Server, running_server, wait_until
from tests.system.small_network import PHOTOGRAPHS, save_small_network

CHINA = (SHIPPED / "china.jpg").read_bytes()


def classify(server: Server, image: bytes, **options: object) -> httpx.Response:
    return CLIENT.post(
        f"{server.url}/v1/classify",
        params={name: str(value) for name, value in options.items()},
        content=image,
        headers={"Content-Type": "image/jpeg"},
        timeout=60,
    )


def test_the_front_end_is_small_and_free_of_torch(server: Server) -> None:
    """An HTTP process stays under 150 MB, the dispatcher under 80 MB, and neither has loaded torch; processes
    carry their titles."""
    (front,) = server.processes("trimvit: http 0")
    maps = Path(f"/proc/{front.pid}/maps").read_text()
    assert "libtorch" not in maps
    assert front.memory_info().rss < 150e6
    (dispatcher,) = server.processes("trimvit: dispatcher")
    assert "libtorch" not in Path(f"/proc/{dispatcher.pid}/maps").read_text()
    assert dispatcher.memory_info().rss < 80e6
    (worker,) = server.processes("trimvit: worker cpu:0")
    assert "libtorch" in Path(f"/proc/{worker.pid}/maps").read_text(), "the check above can fail"
    assert " ".join(psutil.Process(server.supervisor.pid).cmdline()).startswith("trimvit: supervisor")


def test_sigterm_under_load_answers_what_was_accepted(tmp_path: Path) -> None:
    """On SIGTERM every request on the way is answered and the exit code is 0."""
    with running_server(tmp_path) as server, ThreadPoolExecutor(24) as pool:
        answers = [pool.submit(classify, server, image) for image in photographs(24)]
        wait_until(
            lambda: server.metric("trimvit_requested_keep_ratio_count") >= 24, "all requests to be accepted"
        )
        server.supervisor.send_signal(signal.SIGTERM)
        assert [answer.result().status_code for answer in answers] == [200] * 24
        assert server.supervisor.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/livez")


def test_a_killed_worker_is_replaced_and_its_requests_are_answered(tmp_path: Path) -> None:
    """kill -9 of the worker costs time, not an answer; see test_faults.py for all else that may go wrong."""
    with running_server(tmp_path) as server, ThreadPoolExecutor(16) as pool:
        (worker,) = server.processes("trimvit: worker")
        answers = [pool.submit(classify, server, image) for image in photographs(32)]
        wait_until(
            lambda: server.metric("trimvit_requested_keep_ratio_count") >= 16, "requests to be accepted"
        )
        worker.kill()
        assert [answer.result().status_code for answer in answers] == [200] * 32
        assert server.metric("trimvit_restarts_total", process="worker-0") == 1


def test_the_folder_that_it_is_started_in_may_hold_any_modules(tmp_path: Path) -> None:
    """Another `app`, as a FastAPI project has, and names of the standard library are not imported."""
    here = tmp_path / "project"
    (here / "app").mkdir(parents=True)
    for module in ("app/__init__.py", "queue.py", "torch.py"):
        (here / module).write_text("raise SystemExit('a module of the folder was imported')\n")
    model = tmp_path / "small.safetensors"
    save_small_network(model)
    with running_server(tmp_path, "--model", str(model), started_in=here) as server:
        answer = httpx.post(f"{server.url}/v1/classify", content=PHOTOGRAPHS[0], timeout=60)
        assert answer.status_code == 200, answer.text
