"""A front end's connection to the dispatcher, which reconnects when the dispatcher is replaced."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from app.messages import to_dispatcher
from app.messages.frames import FrameReader, framed
from app.messages.to_dispatcher import ToDispatcher

_TRY_EVERY_S = 0.02


@dataclass(slots=True)
class Link:
    """``connected`` is called with every new connection, ``heard`` with every message on it, and ``lost``
    when it has ended."""

    path: Path
    connected: Callable[[], None]
    heard: Callable[[bytes | memoryview], None]
    lost: Callable[[], None]
    _transport: asyncio.WriteTransport | None = field(default=None, init=False)

    @property
    def is_up(self) -> bool:
        """Whether there is a connection now."""
        return self._transport is not None

    def send(self, message: ToDispatcher) -> None:
        """Send a message. Does nothing if there is no connection."""
        if self._transport is not None:
            self._transport.write(framed(to_dispatcher.encode(message)))

    async def keep_up(self) -> None:
        """Keep up a connection, for ever. Raises OSError if the system cannot create one, or what a callback
        raises."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                transport, protocol = await loop.create_unix_connection(
                    lambda: _Protocol(self.heard), str(self.path)
                )
            except (FileNotFoundError, ConnectionError):  # the dispatcher is being started
                await asyncio.sleep(_TRY_EVERY_S)
                continue
            self._transport = transport
            try:
                self.connected()
                await protocol.ended
            finally:
                self._transport = None
                transport.abort()
                self.lost()
            await asyncio.sleep(_TRY_EVERY_S)


class _Protocol(asyncio.Protocol):
    def __init__(self, heard: Callable[[bytes | memoryview], None]) -> None:
        self._heard = heard
        self._frames = FrameReader()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._frames.feed(data):
                self._heard(frame)
        except Exception as error:
            self._end(error)

    def connection_lost(self, _: Exception | None) -> None:
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None) if error is None else self.ended.set_exception(error)
