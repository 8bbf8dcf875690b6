"""Writes that go out in one piece."""

import asyncio

import pytest

from app.http.server.joined import JoinedWrites


class Written:
    """A transport that remembers what was done with it."""

    def __init__(self) -> None:
        self.done: list[object] = []

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("close")

    def abort(self) -> None:
        self.done.append("abort")

    def is_closing(self) -> bool:
        return bool(self.done)


def joined() -> tuple[JoinedWrites, Written]:
    written = Written()
    return JoinedWrites(written, asyncio.get_running_loop()), written  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_head_and_body_go_out_in_one_piece() -> None:
    """And what follows them in the next."""
    transport, written = joined()
    for data in (b"head", b"body", b"head 2", b"body 2"):
        transport.write(data)
    assert written.done == [b"headbody", b"head 2body 2"]
    await asyncio.sleep(0)
    assert len(written.done) == 2


@pytest.mark.anyio
async def test_nothing_is_held_for_longer_than_a_turn_of_the_loop() -> None:
    """A part of an answer whose rest takes its time, or an answer without a body."""
    transport, written = joined()
    transport.write(b"100 Continue")
    await asyncio.sleep(0)
    transport.write(b"head")
    transport.write(b"")
    await asyncio.sleep(0)
    assert written.done == [b"100 Continue", b"head"]


@pytest.mark.anyio
async def test_closing_comes_after_what_was_written_and_aborting_before() -> None:
    """Everything else is the transport's own."""
    transport, written = joined()
    assert not transport.is_closing()
    transport.write(b"last words")
    transport.close()
    assert written.done == [b"last words", "close"]
    transport, written = joined()
    transport.write(b"last words")
    transport.abort()
    await asyncio.sleep(0)
    assert written.done == ["abort"]
    assert transport.is_closing()


class Gone(Written):
    """A transport whose client has gone."""

    def write_eof(self) -> None:
        self.done.append("end")
        raise OSError(107, "Transport endpoint is not connected")


@pytest.mark.anyio
async def test_nothing_is_written_behind_the_end_and_a_client_may_have_gone() -> None:
    """What a route answers to a request that was refused meanwhile is dropped, without an exception."""
    written = Gone()
    transport = JoinedWrites(written, asyncio.get_running_loop())  # type: ignore[arg-type]
    transport.write(b"refused")
    transport.write_eof()
    transport.write(b"an answer, too late")
    await asyncio.sleep(0)
    transport.close()
    assert written.done == [b"refused", "end", "close"]
