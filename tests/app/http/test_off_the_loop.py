"""What takes long is done off the event loop, which goes on answering meanwhile."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from app.decoding.fair_executor import FairExecutor
from app.decoding.image_work import ImageWork
from app.decoding.images import ImageLimits, ModelInput
from app.decoding.pool import InExecutor
from app.errors import TooLarge
from app.http.answers import WARNINGS_HEADER
from app.http.bodies.memory import Memory, Share
from app.main import create_app
from app.settings.settings import Settings
from tests.app.fakes import MODEL, FakeDispatch, encoded
from tests.app.http.problem import assert_problem

INFER = "/v2/models/toy/infer"
WAIT_S = 60


class Held(Executor):
    """An executor that does nothing until it is told to."""

    def __init__(self) -> None:
        self.work: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._more = asyncio.Event()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.work.append((future, lambda: fn(*args, **kwargs)))
        self._more.set()
        return future

    def do_one(self) -> None:
        future, work = self.work.pop(0)
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    async def until_given(self, number: int = 1) -> None:
        while len(self.work) < number:
            self._more.clear()
            await asyncio.wait_for(self._more.wait(), WAIT_S)


def asking(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def form(number: int) -> list[tuple[str, tuple[str, bytes]]]:
    return [("image", (f"{index}.png", encoded())) for index in range(number)]


@pytest.mark.parametrize(
    "request_of",
    [
        lambda client: client.post("/v1/classify?mask=png&mask_stages=true", files=form(2)),
        lambda client: client.post("/v1/classify?mask=grid", files=form(2)),
        lambda client: client.post("/v1/classify?mask=indices", files=form(2)),
        lambda client: client.post("/v1/classify?top_k=11", files=form(60)),
    ],
    ids=["png", "grid", "indices", "many labels"],
)
def test_large_answers_are_rendered_off_the_loop(
    request_of: Callable[[httpx.AsyncClient], Any],
) -> None:
    """While no image is rendered, probes are answered; at most two of one caller are rendered at once."""

    async def main() -> None:
        held = Held()
        app = create_app(Settings(), FakeDispatch(), threads=held)
        async with asking(app) as client:
            answer = asyncio.create_task(request_of(client))
            await held.until_given(2)
            assert (await client.get("/livez")).status_code == 200
            assert len(held.work) == 2
            while not answer.done():
                if held.work:
                    held.do_one()
                await asyncio.sleep(0)
            assert answer.result().status_code == 200
            assert len(answer.result().json()["results"]) in (2, 60)

    asyncio.run(main())


def test_outputs_of_many_images_are_written_off_the_loop() -> None:
    """Also in the Open Inference Protocol, whose tensors of many images are large."""

    async def main() -> None:
        held = Held()
        app = create_app(Settings(), FakeDispatch(), threads=held)
        pixels = {"name": "pixels", "shape": [2, 1, 1, 3], "datatype": "UINT8", "data": [1, 2, 3, 4, 5, 6]}
        async with asking(app) as client:
            answer = asyncio.create_task(client.post(INFER, json={"inputs": [pixels]}))
            await held.until_given(2)  # both images are resized here
            held.do_one()
            held.do_one()
            await held.until_given(1)
            assert (await client.get("/livez")).status_code == 200
            assert not answer.done()
            held.do_one()
            assert (await answer).json()["outputs"][0]["shape"] == [2, 5]

    asyncio.run(main())


def test_a_deadline_passes_while_an_image_waits_to_be_decoded() -> None:
    """The answer does not wait for the decoder."""

    async def main() -> None:
        held = Held()
        app = create_app(Settings(), FakeDispatch(), decoders=InExecutor(held))
        async with asking(app) as client:
            answer = await client.post("/v1/classify?deadline_ms=50", content=encoded())
        assert_problem(answer, 504, "deadline-passed", "while the image was being decoded", image=0)

    asyncio.run(main())


def test_one_callers_images_leave_a_decoder_for_others() -> None:
    """While one caller's images hold their decoders, another caller's is decoded."""

    async def main() -> None:
        held = Held()
        work = ImageWork(InExecutor(held), 3, ImageLimits(1000))
        taken: list[np.ndarray] = []

        def decoding(caller: str) -> "asyncio.Task[tuple[str, ...]]":
            return asyncio.create_task(work.decode(encoded(), MODEL.input, caller, taken.append))

        slow = [decoding("a") for _ in range(9)]
        await held.until_given(2)
        other = decoding("b")
        await held.until_given(3)
        future, decode_it = held.work[2]
        future.set_result(decode_it())
        assert await other == ()
        assert [pixels.shape for pixels in taken] == [(*MODEL.input.size, 3)]
        assert len(held.work) == 3
        for task in slow:
            task.cancel()
        work.close()

    asyncio.run(main())


def test_pixels_have_the_limits_of_images() -> None:
    """An image that came decoded is refused, too, where it has too many pixels."""

    async def main() -> None:
        work = ImageWork(InExecutor(Held()), 1, ImageLimits(10))
        assert isinstance(work._others, FairExecutor)
        pixels = np.zeros((3, 4, 3), np.uint8)
        with pytest.raises(TooLarge, match="at most 10 are allowed"):
            await work.resize(pixels, MODEL.input, "a", Share(Memory()).alone, _never_taken)
        work.close()

    asyncio.run(main())


def _never_taken(_: np.ndarray) -> None:
    raise AssertionError


WARNED = ModelInput(np.zeros((*MODEL.input.size, 3), np.uint8), ("it is cut \N{EM DASH} somewhere",))


class Warns(Executor):
    """Decodes nothing, and has something to say about it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(WARNED)
        return future


@pytest.mark.parametrize("path", ["/v1/classify", "/", "/models/toy"])
def test_what_is_to_be_said_of_an_image_is_in_a_header(path: str) -> None:
    """In every shape of an answer; in that of /v1 also in the image's result."""

    async def main() -> None:
        app = create_app(Settings(), FakeDispatch(), decoders=InExecutor(Warns()))
        async with asking(app) as client:
            answer = await client.post(path, content=encoded())
        assert answer.status_code == 200
        assert answer.headers[WARNINGS_HEADER] == "image 0: it is cut ? somewhere"
        if path == "/v1/classify":
            assert answer.json()["results"][0]["warnings"] == list(WARNED.warnings)

    asyncio.run(main())


def test_outputs_of_the_open_inference_protocol_come_with_the_header() -> None:
    """Each warning names its image; where there is nothing to say there is no header."""

    async def main() -> None:
        image = {"name": "image", "shape": [2], "datatype": "BYTES", "data": ["aGk=", "aGk="]}
        async with asking(create_app(Settings(), FakeDispatch(), decoders=InExecutor(Warns()))) as client:
            answer = await client.post(INFER, json={"inputs": [image]})
        told = "image 0: it is cut ? somewhere; image 1: it is cut ? somewhere"
        assert answer.headers[WARNINGS_HEADER] == told
        async with asking(create_app(Settings(), FakeDispatch())) as client:
            sound = await client.post("/v1/classify", content=encoded())
        assert WARNINGS_HEADER not in sound.headers
        assert "warnings" not in sound.json()["results"][0]

    asyncio.run(main())
