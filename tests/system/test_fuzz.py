"""A real server under damaged images, odd and made-up requests: no 500, no restart, flat memory.

The default run takes a share; `make test ARGS="-m long"` takes 20,000 images and 5,000 requests of each kind.
Which ones is up to TRIMVIT_FUZZ_SEED (default 0).
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from models.bundled import BUNDLED_MODEL
from tests.system.mutants import mutants
from tests.system.odd_requests import Answer, OddRequest, odd_requests
from tests.system.server import Server, is_ready, running_server

SEED = int(os.environ.get("TRIMVIT_FUZZ_SEED", "0"))
CLIENTS = 8
# How much a process may still grow after the first tenth of the images: malloc's and oneDNN's caches, which
# fill with the shapes of batches that have come by. After 2,000 images they are full.
FLAT_BYTES, FILLING_BYTES = 40 * 2**20, 250 * 2**20


# What an input, or too many of them, may cause. Never 500, and no 501 or 502 either.
REFUSALS = {400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 417, 421, 422, 429, 431, 503, 504}


def memory(server: Server) -> dict[str, int]:
    """Resident bytes by process; decoding processes count with their HTTP process's number."""
    children = psutil.Process(server.supervisor.pid).children(recursive=True)
    return {f"{child.name()} {child.pid}": child.memory_info().rss for child in children}


def assert_unharmed(server: Server, before: dict[str, int], growth_bytes: int) -> None:
    """The same processes, hardly larger."""
    assert is_ready(server.url)
    for process in ("dispatcher", "worker-0", "http-0"):
        assert server.metric("trimvit_restarts_total", process=process) == 0
    after = memory(server)
    assert after.keys() == before.keys(), "a process was replaced"
    grown = {name: after[name] - before[name] for name in before if after[name] > before[name] + growth_bytes}
    assert grown == {}
    assert "Traceback" not in server.log.read_text()


def send_mutants(server: Server, images: Iterator[bytes]) -> Counter[int]:
    """Statuses by how often they came."""
    with httpx.Client(timeout=120) as client, ThreadPoolExecutor(CLIENTS) as pool:

        def send(image: bytes) -> int:
            response = client.post(f"{server.url}/v1/classify?keep_ratio=0.1&top_k=1", content=image)
            if response.status_code not in (200, 413, 415, 422):
                pytest.fail(f"{response.status_code} {response.text[:300]} for {image.hex()}")
            return response.status_code

        statuses: Counter[int] = Counter()
        while batch := list(islice(images, 500)):
            statuses.update(pool.map(send, batch))
        return statuses


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own, whose processes are counted."""
    with running_server(tmp_path_factory.mktemp("fuzzed"), "--shared-memory-bytes", "1000000") as server:
        yield server


@pytest.mark.parametrize(
    "count", [pytest.param(500, id="share"), pytest.param(20_000, id="all", marks=pytest.mark.long)]
)
@pytest.mark.timeout(7200)
def test_damaged_images_harm_nobody(target: Server, count: int) -> None:
    """Every mutant is answered or refused in words; some survive, so that the worker sees them too."""
    images = mutants(count, SEED)
    warm = send_mutants(target, islice(images, count // 10))
    before = memory(target)
    statuses = warm + send_mutants(target, images)
    assert sum(statuses.values()) == count
    assert statuses[200] > count / 50
    assert statuses[422] > count / 4
    assert_unharmed(target, before, FLAT_BYTES if count >= 20_000 else FILLING_BYTES)


def assert_in_words(request: OddRequest, answer: Answer) -> None:
    """A status that an input may cause, and for a refusal a document that says why."""
    told = f"{answer} to {request.path} {request.headers} {request.story}"
    if answer.status == 0:
        assert not request.framed, told
        return
    assert answer.status in REFUSALS | {200}, told
    if answer.status in REFUSALS:
        assert answer.content_type in ("application/problem+json", "application/json"), told
        document = json.loads(answer.body)
        assert len(document.get("detail") or document.get("error")) > 10, told


@pytest.mark.parametrize(
    "count", [pytest.param(150, id="share"), pytest.param(5000, id="all", marks=pytest.mark.long)]
)
@pytest.mark.timeout(7200)
def test_odd_requests_are_answered_in_words(target: Server, count: int) -> None:
    """Whatever is odd about a request, it is answered or refused in words, and some are answered."""
    address = urlsplit(target.url)
    assert address.hostname is not None
    assert address.port is not None
    host, port = address.hostname, address.port

    def send(request: OddRequest) -> int:
        answer = request.send(host, port)
        assert_in_words(request, answer)
        return answer.status

    requests = odd_requests(count, SEED, BUNDLED_MODEL)
    with ThreadPoolExecutor(CLIENTS) as pool:
        # Until the caches are full: few of these are images, and each asks for another pruning.
        statuses = Counter(pool.map(send, islice(requests, 2 * count // 5)))
        before = memory(target)
        statuses += Counter(pool.map(send, requests))
    assert statuses[200] > count / 20
    assert_unharmed(target, before, FLAT_BYTES if count >= 5000 else FILLING_BYTES)


# What a schema cannot say is left out, as in tests/app/http/test_openapi.py.
EXCLUDED = [positive_data_acceptance, negative_data_rejection, not_a_server_error]


@pytest.mark.parametrize(
    "count", [pytest.param(100, id="share"), pytest.param(5000, id="all", marks=pytest.mark.long)]
)
@pytest.mark.timeout(7200)
def test_made_up_requests_harm_nobody(target: Server, count: int) -> None:
    """Requests that Schemathesis makes from the server's own document get the answers it declares."""
    schema = schemathesis.openapi.from_url(f"{target.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 5
    # Nearly all that can go wrong goes wrong in the one that takes images.
    shares = {operation.path: 1 if operation.path == "/v1/classify" else 0.02 for operation in operations}
    asked = 0

    def check(case: schemathesis.Case) -> None:
        nonlocal asked
        asked += 1
        response = case.call_and_validate(excluded_checks=EXCLUDED)
        assert response.status_code not in (500, 502), response.text

    before: dict[str, int] = {}
    for operation in operations:
        examples = max(1, round(count * shares[operation.path]))
        strategy = operation.as_strategy()
        before = before or memory(target)
        _run(strategy, check, examples)
    assert asked >= count * 0.9
    assert_unharmed(target, before, FILLING_BYTES)


def _run(strategy: object, check: object, examples: int) -> None:
    """The check on so many cases."""
    wrapped = settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )(given(strategy)(check))  # type: ignore[arg-type]
    wrapped()
