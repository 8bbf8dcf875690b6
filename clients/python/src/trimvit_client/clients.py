"""The sync and the async client. They send, wait and run requests concurrently as `trimvit_client.exchange`
says.

Above 300 lines: every method exists twice, sync and async, with its documentation, so that either client can
be read by itself.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Literal, Self, TypeVar, overload

import httpx

from trimvit_client.address import connecting, server_url
from trimvit_client.errors import Problem, TrimViTError
from trimvit_client.exchange import (
    Attempt,
    Call,
    Exchange,
    Reply,
    Rules,
    Wait,
    change_call,
    classify_call,
    embed_call,
    exchange,
    failure_of,
    headers_of,
    models_call,
    repository_call,
    together_call,
)
from trimvit_client.images import Image, ImageSource, encoded
from trimvit_client.options import Options
from trimvit_client.results import Classification, Embedding, Model, RepositoryModel
from trimvit_client.retries import Retries

_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)
_AHEAD = 2  # times the concurrency: so many images are in hand, so that a slow one holds up no others

Result = TypeVar("Result")


class Client:
    """A TrimViT server at ``url``. Threads may share it. Close it, or use it as a context manager.

    ``api_key`` is sent as a bearer token. ``timeout_s`` is the limit of one attempt for connecting, for
    sending and for the answer, each. See `Retries` for what is sent again. ``http`` is an httpx.Client of
    your own (a proxy, certificates), which you close yourself. Without it, the proxy of the environment is
    used for servers on other machines. Raises ValueError if ``url`` is not a URL.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: Retries | None = None,
        http: httpx.Client | None = None,
    ) -> None:
        self._url = server_url(url)
        self._api_key = api_key
        self._rules = Rules(timeout_s, retries or Retries(), time.monotonic, random.random)
        self._own = http is None
        self._http = http or httpx.Client(limits=_LIMITS, **connecting(self._url))

    def __repr__(self) -> str:
        return f"<Client of {self._url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._own:
            self._http.close()

    def classify(
        self, image: ImageSource, options: Options | None = None, *, deadline_s: float | None = None
    ) -> Classification:
        """Label one image. ``deadline_s`` is the limit for everything, including retries and waits.

        Raises TrimViTError: a `Problem` for an error of the server, ConnectionFailed, TimedOut,
        UnreadableImage or UnexpectedAnswer.
        """
        return self._run(
            exchange(classify_call(encoded(image), options or Options()), self._rules, deadline_s)
        )

    @overload
    def classify_many(
        self,
        images: Iterable[ImageSource | Image],
        options: Options | None = ...,
        *,
        concurrency: int = ...,
        deadline_s: float | None = ...,
        errors: Literal["raise"] = ...,
    ) -> Iterator[Classification]: ...
    @overload
    def classify_many(
        self,
        images: Iterable[ImageSource | Image],
        options: Options | None = ...,
        *,
        concurrency: int = ...,
        deadline_s: float | None = ...,
        errors: Literal["return"],
    ) -> Iterator[Classification | TrimViTError]: ...
    def classify_many(
        self,
        images: Iterable[ImageSource | Image],
        options: Options | None = None,
        *,
        concurrency: int = 8,
        deadline_s: float | None = None,
        errors: Literal["raise", "return"] = "raise",
    ) -> Iterator[Classification | TrimViTError]:
        """Label many images, ``concurrency`` at a time, and yield the answers in the order of the images.
        The images are read as they are needed. The options of an `Image` replace ``options``.
        ``deadline_s`` is for each image.

        With ``errors="return"``, an image's error takes the place of its answer; otherwise the first error is
        raised.
        """
        _check(concurrency)

        def one(image: ImageSource | Image) -> Classification:
            source, own = _own_options(image, options)
            return self.classify(source, own, deadline_s=deadline_s)

        def answers() -> Iterator[Classification | TrimViTError]:
            pool = ThreadPoolExecutor(concurrency, thread_name_prefix="classify")
            window: deque[Future[Classification]] = deque()
            try:
                for image in images:
                    window.append(pool.submit(one, image))
                    if len(window) >= _AHEAD * concurrency:
                        yield _outcome(window.popleft(), errors)
                while window:
                    yield _outcome(window.popleft(), errors)
            finally:
                pool.shutdown(cancel_futures=True)

        return answers()

    def classify_together(
        self,
        images: Iterable[ImageSource | Image],
        options: Options | None = None,
        *,
        deadline_s: float | None = None,
    ) -> tuple[Classification | Problem, ...]:
        """Label several images in one request. Returns, in order, the answer or the problem of each. The
        server limits the number of images (64 by default). Problems of single images are not retried.

        Raises TrimViTError for an error of the whole request.
        """
        asked = [(encoded(source), own or Options()) for source, own in _with_options(images, options)]
        return self._run(exchange(together_call(asked), self._rules, deadline_s))

    def embed(
        self,
        image: ImageSource,
        options: Options | None = None,
        *,
        normalize: bool = False,
        deadline_s: float | None = None,
    ) -> Embedding:
        """The feature vector of one image, with length 1 (L2) if ``normalize`` is set. Otherwise as
        `classify`."""
        call = embed_call(encoded(image), options or Options(), normalize=normalize)
        return self._run(exchange(call, self._rules, deadline_s))

    def models(self) -> tuple[Model, ...]:
        """The served models. Raises TrimViTError."""
        return self._run(exchange(models_call(), self._rules, None))

    def repository(self) -> tuple[RepositoryModel, ...]:
        """The models that are served or may be loaded, if the server was started with ``--model-repository``.
        Raises TrimViTError."""
        return self._run(exchange(repository_call(), self._rules, None))

    def load(self, name: str, *, timeout_s: float = 600.0) -> None:
        """Load and serve a model, in addition to the others. Returns when it is ready. An API key must be
        marked ``admin``. ``timeout_s``: for one attempt; the server continues loading after it. Raises
        TrimViTError."""
        self._run(exchange(change_call(name, "load", timeout_s), self._rules, None))

    def unload(self, name: str, *, timeout_s: float = 600.0) -> None:
        """Stop serving a model. Returns when its memory is free. See `load`."""
        self._run(exchange(change_call(name, "unload", timeout_s), self._rules, None))

    def is_ready(self) -> bool:
        """Whether the server answers images now."""
        try:
            return self._http.get(f"{self._url}/readyz", timeout=self._rules.timeout_s).is_success
        except httpx.TransportError:
            return False

    def _run(self, steps: Exchange[Result]) -> Result:
        reply: Reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                result: Result = end.value
                return result
            reply = None
            if isinstance(step, Wait):
                time.sleep(step.seconds)
            else:
                reply = self._attempt(step)

    def _attempt(self, attempt: Attempt) -> Reply:
        call: Call[object] = attempt.call
        try:
            return self._http.request(
                call.method,
                f"{self._url}{call.path}",
                params=call.params,
                content=call.content,
                headers=headers_of(self._api_key, call),
                timeout=attempt.timeout_s,
            )
        except httpx.TransportError as error:
            return failure_of(error, attempt.timeout_s)


class AsyncClient:
    """A TrimViT server at ``url``, for asyncio. It has every method of `Client`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: Retries | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._url = server_url(url)
        self._api_key = api_key
        self._rules = Rules(timeout_s, retries or Retries(), time.monotonic, random.random)
        self._own = http is None
        self._http = http or httpx.AsyncClient(limits=_LIMITS, **connecting(self._url))

    def __repr__(self) -> str:
        return f"<AsyncClient of {self._url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._own:
            await self._http.aclose()

    async def classify(
        self, image: ImageSource, options: Options | None = None, *, deadline_s: float | None = None
    ) -> Classification:
        """Label one image; see `Client.classify`. A file is read in a thread."""
        data = await asyncio.to_thread(encoded, image)
        return await self._run(exchange(classify_call(data, options or Options()), self._rules, deadline_s))

    @overload
    def classify_many(
        self,
        images: Iterable[ImageSource | Image],
        options: Options | None = ...,
        *,
        concurrency: int = ...,
        deadline_s: float | None = ...,
        errors: Literal["raise"] = ...,
    ) -> AsyncIterator[Classification]: ...
    @overload
    def classify_many(
        self,
        images: Iterable[ImageSource | Image],
        options: Options | None = ...,
        *,
        concurrency: int = ...,
        deadline_s: float | None = ...,
        errors: Literal["return"],
    ) -> AsyncIterator[Classification | TrimViTError]: ...
    def classify_many(
        self,
        images: Iterable[ImageSource | Image],
        options: Options | None = None,
        *,
        concurrency: int = 8,
        deadline_s: float | None = None,
        errors: Literal["raise", "return"] = "raise",
    ) -> AsyncIterator[Classification | TrimViTError]:
        """Label many images, ``concurrency`` at a time; see `Client.classify_many`."""
        _check(concurrency)
        places = asyncio.Semaphore(concurrency)

        async def one(image: ImageSource | Image) -> Classification:
            source, own = _own_options(image, options)
            async with places:
                return await self.classify(source, own, deadline_s=deadline_s)

        async def answers() -> AsyncIterator[Classification | TrimViTError]:
            window: deque[asyncio.Task[Classification]] = deque()
            try:
                for image in images:
                    window.append(asyncio.create_task(one(image)))
                    if len(window) >= _AHEAD * concurrency:
                        yield await _awaited(window.popleft(), errors)
                while window:
                    yield await _awaited(window.popleft(), errors)
            finally:
                for task in window:
                    task.cancel()
                await asyncio.gather(*window, return_exceptions=True)

        return answers()

    async def classify_together(
        self,
        images: Iterable[ImageSource | Image],
        options: Options | None = None,
        *,
        deadline_s: float | None = None,
    ) -> tuple[Classification | Problem, ...]:
        """Label several images in one request; see `Client.classify_together`. Files are read in a thread."""
        asked = [
            (await asyncio.to_thread(encoded, source), own or Options())
            for source, own in _with_options(images, options)
        ]
        return await self._run(exchange(together_call(asked), self._rules, deadline_s))

    async def embed(
        self,
        image: ImageSource,
        options: Options | None = None,
        *,
        normalize: bool = False,
        deadline_s: float | None = None,
    ) -> Embedding:
        """The feature vector of one image; see `Client.embed`. A file is read in a thread."""
        data = await asyncio.to_thread(encoded, image)
        call = embed_call(data, options or Options(), normalize=normalize)
        return await self._run(exchange(call, self._rules, deadline_s))

    async def models(self) -> tuple[Model, ...]:
        """The served models. Raises TrimViTError."""
        return await self._run(exchange(models_call(), self._rules, None))

    async def repository(self) -> tuple[RepositoryModel, ...]:
        """The models that are served or may be loaded; see `Client.repository`."""
        return await self._run(exchange(repository_call(), self._rules, None))

    async def load(self, name: str, *, timeout_s: float = 600.0) -> None:
        """Load and serve a model, in addition to the others; see `Client.load`."""
        await self._run(exchange(change_call(name, "load", timeout_s), self._rules, None))

    async def unload(self, name: str, *, timeout_s: float = 600.0) -> None:
        """Stop serving a model; see `Client.unload`."""
        await self._run(exchange(change_call(name, "unload", timeout_s), self._rules, None))

    async def is_ready(self) -> bool:
        """Whether the server answers images now."""
        try:
            answer = await self._http.get(f"{self._url}/readyz", timeout=self._rules.timeout_s)
        except httpx.TransportError:
            return False
        return answer.is_success

    async def _run(self, steps: Exchange[Result]) -> Result:
        reply: Reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                result: Result = end.value
                return result
            reply = None
            if isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
            else:
                reply = await self._attempt(step)

    async def _attempt(self, attempt: Attempt) -> Reply:
        call: Call[object] = attempt.call
        try:
            return await self._http.request(
                call.method,
                f"{self._url}{call.path}",
                params=call.params,
                content=call.content,
                headers=headers_of(self._api_key, call),
                timeout=attempt.timeout_s,
            )
        except httpx.TransportError as error:
            return failure_of(error, attempt.timeout_s)


def _check(concurrency: int) -> None:
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, got {concurrency}")


def _own_options(image: ImageSource | Image, common: Options | None) -> tuple[ImageSource, Options | None]:
    return (image.source, image.options) if isinstance(image, Image) else (image, common)


def _with_options(
    images: Iterable[ImageSource | Image], common: Options | None
) -> list[tuple[ImageSource, Options | None]]:
    """Images with their options. Raises ValueError if there is no image."""
    each = [_own_options(image, common) for image in images]
    if not each:
        raise ValueError("there is no image to classify")
    return each


def _outcome(
    future: Future[Classification], errors: Literal["raise", "return"]
) -> Classification | TrimViTError:
    try:
        return future.result()
    except TrimViTError as error:
        if errors == "raise":
            raise
        return error


async def _awaited(
    task: asyncio.Task[Classification], errors: Literal["raise", "return"]
) -> Classification | TrimViTError:
    try:
        return await task
    except TrimViTError as error:
        if errors == "raise":
            raise
        return error
