"""A brown-out on a live server: who allows it is answered at a lower ratio, which the answer and the metrics
say; when the load has gone, ratios are what was asked for again."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.system.photographs import photographs
from tests.system.server import Server, wait_until

CLIENTS = 64
FLOOR = 0.3
ASKED: dict[str, Any] = {"keep_ratio": 1, "min_keep_ratio": FLOOR, "deadline_ms": 4000, "mask": "indices"}
PICTURE = photographs(1)[0]


def ask(server: Server, **options: Any) -> dict[str, Any]:
    response = httpx.post(f"{server.url}/v1/classify", content=PICTURE, params=options, timeout=60)
    result: dict[str, Any] = response.raise_for_status().json()["results"][0]
    return result


@contextmanager
def flood(server: Server) -> Iterator[list[dict[str, Any]]]:
    """More clients than can be served as they ask. The results that were lowered, which become more."""
    lowered: list[dict[str, Any]] = []
    ended = threading.Event()

    def client(picture: bytes) -> None:
        with httpx.Client(timeout=60) as link:
            while not ended.is_set():
                response = link.post(f"{server.url}/v1/classify", content=picture, params=ASKED)
                if response.status_code == 200 and response.json()["results"][0]["lowered"] is not None:
                    lowered.append(response.json()["results"][0])

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, picture) for picture in photographs(CLIENTS)]
        try:
            yield lowered
        finally:
            ended.set()
        for one in clients:
            one.result()


def reasons(lowered: list[dict[str, Any]]) -> Counter[str]:
    return Counter(result["lowered"] for result in list(lowered))


def test_who_allows_it_is_lowered_under_load(server: Server) -> None:
    """Down to the floor, with that many patches; who does not allow it keeps the ratio all the while."""
    with flood(server) as lowered:
        wait_until(lambda: reasons(lowered)["brown-out"] >= 20, "images to be lowered")
        rigid = ask(server, keep_ratio=0.9, deadline_ms=60_000)
    assert (rigid["keep_ratio"], rigid["lowered"]) == (0.9, None)
    for result in lowered:
        assert result["requested_keep_ratio"] == 1
        assert FLOOR <= result["keep_ratio"] < 1
        assert result["patches"]["kept"] == len(result["mask"][0]["indices"]) < result["patches"]["total"]
    assert set(reasons(lowered)) <= {"brown-out", "deadline"}  # the latter where their turn comes late
    for reason, count in reasons(lowered).items():
        assert server.metric("trimvit_lowered_total", reason=reason) >= count


@pytest.mark.long
def test_when_the_load_has_gone_ratios_are_as_asked_again(server: Server) -> None:
    """Step by step, so that it takes a minute."""
    with flood(server) as lowered:
        wait_until(lambda: reasons(lowered)["brown-out"] >= 20, "images to be lowered")
    assert server.metric("trimvit_brown_out_ratio") < 1
    wait_until(lambda: ask(server, **ASKED)["keep_ratio"] == 1, "an image to keep its ratio again")
    wait_until(lambda: server.metric("trimvit_brown_out_ratio") == 1, "the brown-out to be over")
