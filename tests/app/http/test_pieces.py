"""Answers whose body is sent in pieces."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from starlette.types import Message

from app.http.pieces import in_pieces


@given(st.lists(st.binary(max_size=50_000), max_size=8))
def test_the_body_is_what_the_pieces_come_to(pieces: list[bytes]) -> None:
    """With its length, its type and its headers, be it small or large."""
    answer = in_pieces(pieces, media_type="application/json", headers={"Server-Timing": "total;dur=1"})
    response = TestClient(answer).get("/")
    assert response.content == b"".join(pieces)
    assert int(response.headers["Content-Length"]) == len(response.content)
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Server-Timing"] == "total;dur=1"


@pytest.mark.anyio
@pytest.mark.parametrize(("pieces", "messages"), [([b"x" * 10] * 3, 1), ([b"x" * 50_000] * 3, 4)])
async def test_a_large_body_is_never_joined(pieces: list[bytes], messages: int) -> None:
    """A small one goes out at once."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    await in_pieces(pieces, media_type="text/plain", headers={})({"type": "http"}, receive, send)
    bodies = [message for message in sent if message["type"] == "http.response.body"]
    assert len(bodies) == messages
    assert not bodies[-1].get("more_body")
