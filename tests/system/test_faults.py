"""Processes that die, hang or do not come up, with real processes: clients see latency only."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.system.faulty import (
    FAIL_TO_LOAD,
    HANG_IN_LOADING,
    HANGS,
    HARMLESS,
    HOLDS_THE_LOCK,
    KILLS,
    LOADS,
    PROGRAM,
    SECONDS_PER_BATCH,
    faulty_server,
    picture,
)
from tests.system.server import CLIENT, Server, is_ready, running_server, wait_until


def classify(server: Server, colour: tuple[int, int, int] = HARMLESS, **options: object) -> httpx.Response:
    params = {name: str(value) for name, value in options.items()}
    return CLIENT.post(f"{server.url}/v1/classify", content=picture(colour), params=params, timeout=120)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


def worker_of(server: Server) -> psutil.Process:
    return server.only_process("trimvit: worker")


def restarts(server: Server, process: str = "worker-0") -> float:
    return server.metric("trimvit_restarts_total", process=process)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_worker_that_is_killed_or_stopped_costs_time_and_no_answer(
    tmp_path: Path, pool: ThreadPoolExecutor, number: signal.Signals
) -> None:
    """What was in flight and what came meanwhile is answered, once, by the next worker."""
    with faulty_server(tmp_path, "--hang-after-s", "2", seconds_per_batch=0.3) as server:
        before = [pool.submit(classify, server) for _ in range(32)]
        # Decoded, so that the others are with the worker, too.
        wait_until(lambda: server.metric("trimvit_images_total", outcome="answered") >= 1, "an answer")
        worker = worker_of(server)
        worker.send_signal(number)
        after = [pool.submit(classify, server) for _ in range(32)]
        assert {answer.result().status_code for answer in before + after} == {200}
        wait_until(lambda: restarts(server) == 1, "the restart to be counted")
        assert worker_of(server).pid != worker.pid
        assert server.metric("trimvit_images_total", outcome="answered") == 64
        assert server.metric("trimvit_images_sent_again_total") > 0
        if number == signal.SIGSTOP:
            assert (
                "killing worker-0, which does not respond: its main loop has not responded"
                in server.log.read_text()
            )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_dispatcher_that_is_killed_or_stopped_costs_time_and_no_answer(
    tmp_path: Path, pool: ThreadPoolExecutor, number: signal.Signals
) -> None:
    """What was open is sent to its successor, whichever front end has it; no worker loads its model again."""
    flags = ("--hang-after-s", "2", "--http-workers", "2", "--workers-per-device", "2")
    with faulty_server(tmp_path, *flags, seconds_per_batch=0.3) as server:
        wait_until(lambda: (tmp_path / LOADS).read_text() == "!!", "both workers")
        workers = {process.pid for process in server.processes("trimvit: worker")}
        before = [pool.submit(classify, server) for _ in range(32)]
        wait_until(lambda: server.metric("trimvit_images_total", outcome="answered") >= 1, "an answer")
        (dispatcher,) = server.processes("trimvit: dispatcher")
        dispatcher.send_signal(number)
        after = [pool.submit(classify, server) for _ in range(32)]
        assert {answer.result().status_code for answer in before + after} == {200}
        wait_until(lambda: restarts(server, "dispatcher") == 1, "the restart to be counted")
        assert server.metric("trimvit_images_total", outcome="answered") == 64
        assert {process.pid for process in server.processes("trimvit: worker")} == workers
        assert (tmp_path / LOADS).read_text() == "!!"
        if number == signal.SIGSTOP:
            assert (
                "killing dispatcher, which does not respond: its main loop has not responded"
                in server.log.read_text()
            )


def test_no_slot_is_lost_with_any_process(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """The queue holds four images, so a front end has few slots: although every process dies a few times
    under load, there are always some, for more images than there are slots."""
    flags = ("--max-queue-images", "4", "--decode-processes", "2")
    with faulty_server(tmp_path, *flags, seconds_per_batch=0.02) as server:

        def asked() -> None:
            with contextlib.suppress(httpx.TransportError):
                classify(server, deadline_ms=2000)

        for title in ("trimvit: worker", "trimvit: dispatcher", "trimvit: decode", "trimvit: http 0") * 3:
            answers = [pool.submit(asked) for _ in range(64)]
            wait_until(lambda: server.processes(title) != [], title)  # noqa: B023
            server.processes(title)[0].kill()
            for answer in answers:
                answer.result()
            wait_until(lambda: is_ready(server.url), "the next one")
        for _ in range(300):  # more than there are slots
            assert classify(server).status_code == 200


def test_only_the_image_that_kills_workers_is_refused(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """One that kills its worker, never returns, or blocks the whole process: two workers are lost with it,
    it is refused with a problem of its own, and its neighbours are answered, by whichever process."""
    flags = ("--hang-after-s", "1.5", "--http-workers", "2")
    with faulty_server(tmp_path, *flags, seconds_per_batch=0.05, quick_restarts=True) as server:
        for number, colour in enumerate((KILLS, HANGS, HOLDS_THE_LOCK), 1):
            neighbours = [pool.submit(classify, server) for _ in range(12)]
            fatal = pool.submit(classify, server, colour)
            neighbours += [pool.submit(classify, server) for _ in range(12)]
            assert {answer.result().status_code for answer in neighbours} == {200}
            refused = fatal.result()
            assert refused.status_code == 500, refused.text
            assert refused.json()["type"] == "urn:trimvit:problem:engine-lost"
            assert "2 workers died" in refused.json()["detail"]
            assert "Retry-After" not in refused.headers
            wait_until(lambda: is_ready(server.url), "the next worker")
            wait_until(lambda: restarts(server) == 2 * number, "two restarts each")  # noqa: B023
        assert server.metric("trimvit_images_total", outcome="engine-lost") == 3
        assert server.log.read_text().count("does not respond: a batch has taken longer than") == 2


def test_while_a_worker_is_restarted_requests_wait_as_long_as_they_may(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """Those with time are answered; those without are told in time, and so are probes."""
    with faulty_server(tmp_path, "--restart-wait-s", "60") as server:
        (tmp_path / FAIL_TO_LOAD).touch()
        worker_of(server).kill()
        wait_until(lambda: not is_ready(server.url), "the loss to be seen")
        patient = [pool.submit(classify, server, deadline_ms=120_000) for _ in range(8)]
        hurried = classify(server, deadline_ms=200)
        assert hurried.status_code == 503
        assert hurried.json()["type"] == "urn:trimvit:problem:not-ready"
        assert int(hurried.headers["Retry-After"]) >= 1
        assert CLIENT.get(f"{server.url}/livez").status_code == 200
        assert CLIENT.get(f"{server.url}/readyz").status_code == 503
        assert not any(answer.done() for answer in patient)
        (tmp_path / FAIL_TO_LOAD).unlink()
        assert {answer.result().status_code for answer in patient} == {200}


def test_starts_that_fail_again_and_again_are_told_and_made_slowly(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """After five in a row, /readyz, answers and the log say why, and nobody waits; a worker that comes up
    after all serves again."""
    with faulty_server(tmp_path, "--slow-retry-s", "3", quick_restarts=True) as server:
        (tmp_path / FAIL_TO_LOAD).touch()
        worker_of(server).kill()
        waiting = pool.submit(classify, server, deadline_ms=600_000)

        def reason() -> str:
            return CLIENT.get(f"{server.url}/readyz").json()["reason"] or ""

        wait_until(lambda: "failed to start" in reason(), "the worker to be given up")
        words = "times in a row, the last time with: RuntimeError: told to fail; next attempt in"
        assert words in reason()
        for answer in (waiting.result(), classify(server)):
            assert answer.status_code == 503
            assert words in answer.json()["detail"]
            assert int(answer.headers["Retry-After"]) >= 1
        assert CLIENT.get(f"{server.url}/livez").status_code == 200
        log = server.log.read_text()
        assert "worker-0 failed to start 5 times in a row (RuntimeError: told to fail)" in log
        (tmp_path / FAIL_TO_LOAD).unlink()
        wait_until(lambda: is_ready(server.url), "a slow retry to succeed")
        assert classify(server).status_code == 200


def test_an_http_process_that_is_killed_is_replaced_and_nothing_grows(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """Its neighbour goes on, counters go on, and the metrics files stay the same ones."""
    with faulty_server(tmp_path, "--http-workers", "2") as server:

        def answered() -> int:
            """Asks on a connection of its own until an answer comes: a killed process takes its clients'
            connections with it."""
            while True:
                try:
                    return classify(server).status_code
                except httpx.TransportError:
                    time.sleep(0.01)

        def files() -> set[str]:
            descriptors = Path(f"/proc/{server.supervisor.pid}/fd").iterdir()
            (folder,) = {
                target.parent for target in map(Path.readlink, descriptors) if target.parent.name == "metrics"
            }
            return {file.name for file in folder.iterdir()}

        assert [answered() for _ in range(8)] == [200] * 8
        wait_until(lambda: server.metric("trimvit_images_total", outcome="answered") == 8, "the count")
        before = files()
        for number in (1, 2, 3):
            answers = [pool.submit(answered) for _ in range(8)]
            server.processes("trimvit: http 1")[0].kill()
            assert {answer.result() for answer in answers} == {200}
            wait_until(lambda: restarts(server, "http-1") == number, "the restart")  # noqa: B023
            wait_until(lambda: len(server.processes("trimvit: http")) == 2, "two HTTP processes")
        count = server.metric("trimvit_images_total", outcome="answered")
        assert 8 + 24 <= count <= 8 + 24 + 3 * 8  # of those whose answer was lost, some had been counted
        assert files() == before


def test_a_killed_supervisor_leaves_no_orphan_and_its_port_free(tmp_path: Path) -> None:
    """kill -9 of the supervisor ends all its processes; the next start has the same port."""
    with faulty_server(tmp_path, "--workers-per-device", "2", "--http-workers", "2") as server:
        supervisor = psutil.Process(server.supervisor.pid)
        kinds = {"fork": 1, "dispatcher": 1, "worker": 2, "http": 2}
        wait_until(
            lambda: {kind: len(server.processes(f"trimvit: {kind}")) for kind in kinds} == kinds,
            "each process to have its title",
        )
        children = supervisor.children(recursive=True)  # those that decode, too
        server.supervisor.kill()
        _, alive = psutil.wait_procs(children, timeout=30)
        assert alive == []
        again = tmp_path / "again"
        again.mkdir()
        (again / SECONDS_PER_BATCH).write_text("0")
        port = int(server.url.rpartition(":")[2])
        with running_server(again, program=PROGRAM, port=port) as successor:
            assert successor.url == server.url
            assert classify(successor).status_code == 200


@pytest.mark.parametrize("ending", ["a second SIGTERM", "the end of the grace time"])
def test_what_does_not_finish_is_ended(tmp_path: Path, pool: ThreadPoolExecutor, ending: str) -> None:
    """A worker that never answers does not keep the server from ending, which then says that it failed."""
    grace = "1" if ending == "the end of the grace time" else "600"
    with faulty_server(tmp_path, "--shutdown-grace-s", grace, "--hang-after-s", "600") as server:
        children = psutil.Process(server.supervisor.pid).children(recursive=True)

        def lost() -> bool:
            try:
                return classify(server, HANGS).status_code >= 500
            except httpx.TransportError:
                return True

        asked = pool.submit(lost)
        wait_until(lambda: server.metric("trimvit_requested_keep_ratio_count") == 1, "the request")
        server.supervisor.terminate()
        if ending == "a second SIGTERM":
            wait_until(lambda: "finishing the accepted requests" in server.log.read_text(), "the drain")
            assert server.supervisor.poll() is None
            server.supervisor.terminate()
        assert server.supervisor.wait(60) == 1
        assert asked.result()
        _, alive = psutil.wait_procs(children, timeout=30)
        assert alive == []


def test_workers_are_replaced_while_the_server_drains(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """A worker that dies after SIGTERM does not take with it what was accepted before."""
    with faulty_server(tmp_path, seconds_per_batch=0.3) as server:
        answers = [pool.submit(classify, server) for _ in range(24)]
        wait_until(lambda: server.metric("trimvit_requested_keep_ratio_count") == 24, "the requests")
        server.supervisor.terminate()
        wait_until(lambda: "finishing the accepted requests" in server.log.read_text(), "the drain")
        os.kill(worker_of(server).pid, signal.SIGKILL)
        assert {answer.result().status_code for answer in answers} == {200}
        assert server.supervisor.wait(200) == 0


def test_a_model_that_hangs_in_loading_is_given_up(tmp_path: Path) -> None:
    """The caller is told after the limit, images of the served model are answered all the time by the same
    worker, and later loads are possible."""
    models = ("--model", "toy=toy", "--loadable", "slow=slow", "--loadable", "other=other")
    flags = (*models, "--model-repository", "--load-limit-s", "15", "--workers-per-device", "1")
    with faulty_server(tmp_path, *flags) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        worker = server.only_process("trimvit: worker").pid
        (tmp_path / HANG_IN_LOADING).touch()

        def load(name: str) -> httpx.Response:
            return client.post(f"/v2/repository/models/{name}/load")

        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(load, "slow")
            answered = 0
            while not loading.done():
                assert client.post("/v1/classify", content=picture()).status_code == 200
                answered += 1
        response = loading.result()
        assert response.status_code == 504, response.text
        assert "longer than 15 s (--load-limit-s)" in response.json()["error"]
        assert answered > 1
        index = {each["name"]: each for each in client.post("/v2/repository/index").json()}
        assert index["slow"]["state"] == "UNAVAILABLE"
        assert "longer than 15 s" in index["slow"]["reason"]
        (tmp_path / HANG_IN_LOADING).unlink()
        for name in ("other", "slow"):
            assert (response := load(name)).status_code == 200, response.text
            answer = client.post(f"/v1/classify?model={name}", content=picture())
            assert (answer.status_code, answer.json()["model"]) == (200, name)
        assert server.only_process("trimvit: worker").pid == worker
