"""The work on images around the network: decoding, resizing, rendering. Off the event loop, in fair turns."""

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import ParamSpec, TypeVar

import numpy as np
from jaxtyping import UInt8

from app.decoding.fair_executor import FairExecutor, FairTurns
from app.decoding.images import Data, ImageLimits, ModelInput, Take, as_it_is, resized
from app.decoding.pool import Decoders
from models.transforms import InputSpec

_P = ParamSpec("_P")
_T = TypeVar("_T")

# These threads compete with the worker for the cores. One caller gets at most two (app.turns).
_THREADS = 3


class ImageWork:
    """Decodes in ``decoders``, at most ``places`` images at a time, and does other work in ``threads``: by
    default, in a few of its own.

    Every method takes the caller to whose share the work counts.
    """

    def __init__(
        self, decoders: Decoders, places: int, limits: ImageLimits, threads: Executor | None = None
    ) -> None:
        self._limits = limits
        self._decoders = decoders
        self._decoding = FairTurns(places)
        self._threads = threads or ThreadPoolExecutor(_THREADS, thread_name_prefix="images")
        self._others = FairExecutor(self._threads, _THREADS)

    async def decode(self, data: Data, spec: InputSpec, caller: str, take: Take) -> tuple[str, ...]:
        """Decode an image: call ``take`` with the pixels, even if nobody waits any more, and return the
        warnings. Raises what `app.decoding.images.decode` or ``take`` raises."""
        return await self._decoding.run(caller, lambda: self._decoders.decode(data, spec, self._limits, take))

    async def resize(
        self,
        pixels: UInt8[np.ndarray, "rows columns 3"],
        spec: InputSpec,
        caller: str,
        alone: Callable[[], AbstractContextManager[None]],
        take: Take,
    ) -> None:
        """Resize pixels and call ``take`` with the result. Raises what `app.decoding.images.resized` or
        ``take`` raises. It runs within ``alone``, because it needs memory for a copy of the pixels. Pixels
        that already have the size of the input are passed on unchanged."""
        if (ready := as_it_is(pixels, spec, self._limits)) is not None:
            take(ready.pixels)
            return

        def counted() -> ModelInput:
            with alone():
                return resized(pixels, spec, self._limits)

        take((await self._others.run(caller, counted)).pixels)

    async def render(
        self, caller: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """The result of a function that writes an answer."""
        return await self._others.run(caller, function, *args, **kwargs)

    def close(self) -> None:
        """End the threads. The decoders belong to whoever passed them."""
        self._threads.shutdown(wait=False, cancel_futures=True)
