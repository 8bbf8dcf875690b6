"""Answers kept for images that are asked for again: a hit costs no decoding and no place in the queue.

The key is made of all that decides an answer: the model with the fingerprint of its weights, the whole `Ask`,
and the bytes of the image as they came. It is a keyed hash with a secret of this process, so nobody outside
can aim at an entry. Entries are kept encoded: then their bytes are known, and nobody can change them.
"""

import asyncio
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import msgspec
from msgspec import Struct, structs

from app.decoding.images import Data
from app.messages.image import Ask, Prediction
from app.messages.model import ModelInfo
from app.telemetry import metrics

# What an entry takes beside its own bytes: the objects for key and value, and its place in the dictionary.
ENTRY_BYTES = 320
_DIGEST_BYTES = 32

_encode = msgspec.msgpack.Encoder().encode


class CachedAnswer(Struct, frozen=True, array_like=True):
    """What came out for an image. ``picture``: uint8 [height, width, 3], what the model saw, where a mask is
    to be drawn over it."""

    prediction: Prediction
    warnings: tuple[str, ...] = ()
    picture: bytes | None = None


_decode = msgspec.msgpack.Decoder(CachedAnswer).decode


class AnswerCache:
    """Holds up to ``most_bytes``; the least recently used answers are dropped first."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self._secret = secrets.token_bytes(hashlib.blake2b.MAX_KEY_SIZE)
        self._models: dict[str, tuple[ModelInfo, bytes]] = {}
        self._under_way: dict[Hashable, asyncio.Future[bool]] = {}
        metrics.ANSWER_CACHE_BYTES.set(0)

    def __repr__(self) -> str:
        return f"<AnswerCache {len(self._entries)} answers, {self._bytes} of {self._most_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return self._bytes

    def key(
        self,
        model: ModelInfo,
        ask: Ask,
        data: Data,
        *,
        shape: tuple[int, ...] = (),
        picture: bool = False,
        caller: str | None = None,
    ) -> bytes:
        """Of an image, encoded or, with their ``shape``, as pixels. ``picture``: whether what the model saw
        is wanted, too; ``caller``: whose answers these are, None where everybody shares them.

        How far a ratio may be lowered is left out: answers at a lower ratio are never kept.
        """
        asked = structs.replace(ask, min_keep_ratio=None)
        digest = hashlib.blake2b(self._of_model(model), key=self._secret, digest_size=_DIGEST_BYTES)
        digest.update(_encode((asked, shape, picture, caller)))  # msgpack says where each part ends
        digest.update(data)
        return digest.digest()

    def _of_model(self, model: ModelInfo) -> bytes:
        """A digest of everything that is known of it, made once for each that comes up."""
        known = self._models.get(model.name)
        if known is None or known[0] is not model:
            digest = hashlib.blake2b(_encode(model), digest_size=_DIGEST_BYTES).digest()
            known = self._models[model.name] = model, digest
        return known[1]

    def get(self, key: bytes) -> CachedAnswer | None:
        """The answer of that key, which counts as asked for now; None where there is none."""
        data = self._entries.get(key)
        if data is None:
            metrics.ANSWER_CACHE_MISSES.inc()
            return None
        self._entries.move_to_end(key)
        metrics.ANSWER_CACHE_HITS.inc()
        return _decode(data)

    async def wait(self, key: bytes, asked: Hashable, left_s: float) -> None:
        """While what is ``asked`` is being computed and has no answer here yet, wait for it. Whoever finds no
        answer of ``key`` then computes it: the first one was not answered, or with what is not kept.

        Raises TimeoutError after ``left_s``.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + left_s
        while key not in self._entries and (first := self._under_way.get(asked)) is not None:
            # Unlike awaiting the future, this leaves it alone if who waits is cancelled.
            done, _ = await asyncio.wait((first,), timeout=max(until - loop.time(), 0))
            if not done:
                raise TimeoutError
            if first.result():
                return

    @contextmanager
    def computing(self, asked: Hashable) -> Iterator[None]:
        """Who asks for the same waits meanwhile: for an answer, or, where it fails or is cancelled, to be the
        next one that computes it. What is under way already is computed beside it."""
        if asked in self._under_way:
            yield
            return
        answered = self._under_way[asked] = asyncio.get_running_loop().create_future()
        try:
            yield
        except BaseException:
            answered.set_result(False)
            raise
        else:
            answered.set_result(True)
        finally:
            del self._under_way[asked]

    def put(self, key: bytes, answer: CachedAnswer) -> None:
        """Keep it, in place of what was not asked for the longest. One that is too large alone is not."""
        data = _encode(answer)
        size = _size(key, data)
        old = self._entries.pop(key, None)
        if old is not None:
            self._bytes -= _size(key, old)
        if size <= self._most_bytes:
            while self._bytes + size > self._most_bytes:
                evicted, dropped = self._entries.popitem(last=False)
                self._bytes -= _size(evicted, dropped)
                metrics.ANSWER_CACHE_EVICTIONS.inc()
            self._entries[key] = data
            self._bytes += size
        metrics.ANSWER_CACHE_BYTES.set(self._bytes)


def _size(key: bytes, data: bytes) -> int:
    return len(key) + len(data) + ENTRY_BYTES
