"""A cache of answers: a hit needs no decoding and no place in the queue.

The key covers everything that determines an answer: the model with the fingerprint of its weights, the whole
`Ask`, and the bytes of the image. It is a keyed hash with a secret of this process, so nobody outside can
choose an image that collides with an entry. Entries are stored encoded, so their size is known and nobody can
change them.
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

# Memory of an entry in addition to its bytes: the key and value objects and the dictionary slot.
ENTRY_BYTES = 320
_DIGEST_BYTES = 32

_encode = msgspec.msgpack.Encoder().encode


class CachedAnswer(Struct, frozen=True, array_like=True):
    """The answer for an image. ``picture``: uint8 [height, width, 3], the input of the model, if a mask may
    be drawn on it."""

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
        """The number of bytes in use."""
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
        """The key of an image, encoded or, with its ``shape``, as pixels. ``picture``: whether the input of
        the model is needed, too. ``caller``: the owner of the answer; None if all callers share the cache.

        How far a ratio may be lowered is not part of the key: answers at a lowered ratio are never stored.
        """
        asked = structs.replace(ask, min_keep_ratio=None)
        digest = hashlib.blake2b(self._of_model(model), key=self._secret, digest_size=_DIGEST_BYTES)
        # The encoding is unambiguous, because msgpack marks where each part ends.
        digest.update(_encode((asked, shape, picture, caller)))
        digest.update(data)
        return digest.digest()

    def _of_model(self, model: ModelInfo) -> bytes:
        """A digest of everything that is known of the model, cached for each model."""
        known = self._models.get(model.name)
        if known is None or known[0] is not model:
            digest = hashlib.blake2b(_encode(model), digest_size=_DIGEST_BYTES).digest()
            known = self._models[model.name] = model, digest
        return known[1]

    def get(self, key: bytes) -> CachedAnswer | None:
        """The answer for that key, which becomes the most recently used one. None if there is none."""
        data = self._entries.get(key)
        if data is None:
            metrics.ANSWER_CACHE_MISSES.inc()
            return None
        self._entries.move_to_end(key)
        metrics.ANSWER_CACHE_HITS.inc()
        return _decode(data)

    async def wait(self, key: bytes, asked: Hashable, left_s: float) -> None:
        """Wait while the same image is being computed and has no answer here yet. Whoever finds no answer for
        ``key`` afterwards computes it: the first one failed, or its answer is not stored.

        Raises TimeoutError after ``left_s``.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + left_s
        while key not in self._entries and (first := self._under_way.get(asked)) is not None:
            # Unlike `await first`, this does not cancel the future if the waiting request is cancelled.
            done, _ = await asyncio.wait((first,), timeout=max(until - loop.time(), 0))
            if not done:
                raise TimeoutError
            if first.result():
                return

    @contextmanager
    def computing(self, asked: Hashable) -> Iterator[None]:
        """A context manager while an image is being computed: requests for the same one wait for its answer
        or, if it fails or is cancelled, one of them computes it next. What has already begun is computed in
        parallel."""
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
        """Store the answer, and drop the least recently used ones to make room. One that is too large by
        itself is not stored."""
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
