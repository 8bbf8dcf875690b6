"""The answer cache: what its key knows, what it holds, and what a request gets from it."""

import asyncio
import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from app.errors import QueueFull
from app.http.answer_cache import ENTRY_BYTES, AnswerCache, CachedAnswer
from app.http.schemas import ClassifyResponse
from app.main import create_app
from app.messages.image import Ask, Prediction
from app.messages.model import ModelInfo
from app.settings.settings import Settings
from models.schedule import Pruning
from tests.app.fakes import MODEL, FakeDispatch, encoded
from tests.app.http.problem import assert_problem

ASK = Ask(Pruning(0.5), 5)
CACHE_BYTES = 2**20

# For each field of what is asked, another value than ASK's. A new field has to be added here, and the test
# shows that the key knows it, or says why it need not.
OTHERS: dict[str, Ask] = {
    "pruning.keep_ratio": Ask(Pruning(0.6), 5),
    "pruning.criterion": Ask(Pruning(0.5, "mad"), 5),
    "pruning.reducer": Ask(Pruning(0.5, reducer="fuse"), 5),
    "pruning.seed": Ask(Pruning(0.5, seed=1), 5),
    "pruning.keep_mass": Ask(Pruning(keep_mass=0.5), 5),
    "top_k": Ask(Pruning(0.5), 4),
    "margin": Ask(Pruning(0.5), 5, margin=0.1),
    "kept_patches": Ask(Pruning(0.5), 5, kept_patches=True),
    "logits": Ask(Pruning(0.5), 5, logits=True),
    "features": Ask(Pruning(0.5), 5, features=True),
}
# An answer at a lower ratio than the asked one is never kept, so how far it might have gone is all one.
DECIDES_NOTHING = {"min_keep_ratio": Ask(Pruning(0.5), 5, min_keep_ratio=0.3)}


def prediction(labels: int) -> Prediction:
    return Prediction(list(range(labels)), [0.5] * labels, (8, 4), 0.5, 0.4, 1)


def test_the_key_knows_every_field_of_what_is_asked() -> None:
    """Whatever else is asked has another key; a field that is added to Ask or Pruning is missed here."""
    fields = {name for name in Ask.__struct_fields__ if name != "pruning"}
    fields |= {f"pruning.{name}" for name in Pruning.__dataclass_fields__}
    assert OTHERS.keys() | DECIDES_NOTHING.keys() == fields
    cache = AnswerCache(CACHE_BYTES)
    keys = [cache.key(MODEL, ask, b"image") for ask in (ASK, *OTHERS.values())]
    assert len(set(keys)) == len(keys)
    assert {cache.key(MODEL, ask, b"image") for ask in DECIDES_NOTHING.values()} == {keys[0]}


@pytest.mark.parametrize(
    "model",
    [
        msgspec.structs.replace(MODEL, fingerprint="other weights"),
        msgspec.structs.replace(MODEL, name="other"),
        msgspec.structs.replace(MODEL, dtype="int8"),
        msgspec.structs.replace(MODEL, labels=MODEL.labels[::-1]),
        msgspec.structs.replace(MODEL, input=replace(MODEL.input, crop="squash")),
    ],
    ids=["weights", "name", "dtype", "labels", "geometry"],
)
def test_another_model_has_other_keys(model: ModelInfo) -> None:
    """Also under the same name, after it has been loaded again; and its own again when it comes back."""
    cache = AnswerCache(CACHE_BYTES)
    before = cache.key(MODEL, ASK, b"image")
    assert cache.key(model, ASK, b"image") != before
    assert cache.key(MODEL, ASK, b"image") == before


def test_the_key_knows_bytes_shape_picture_caller_and_the_process() -> None:
    """Pixels of another shape, a picture beside the answer, another caller; and no one can make it up."""
    cache = AnswerCache(CACHE_BYTES)
    keys = [
        cache.key(MODEL, ASK, b"image"),
        cache.key(MODEL, ASK, b"images"),
        cache.key(MODEL, ASK, b"image", shape=(1, 5)),
        cache.key(MODEL, ASK, b"image", shape=(5, 1)),
        cache.key(MODEL, ASK, b"image", picture=True),
        cache.key(MODEL, ASK, b"image", caller="alice"),
        cache.key(MODEL, ASK, b"image", caller="bob"),
        cache.key(MODEL, ASK, b"image", caller=""),
        AnswerCache(CACHE_BYTES).key(MODEL, ASK, b"image"),
    ]
    assert len(set(keys)) == len(keys)
    assert cache.key(MODEL, ASK, memoryview(b"image")) == keys[0]


@given(
    most=st.integers(1, 8000),
    steps=st.lists(st.tuples(st.integers(0, 9), st.one_of(st.none(), st.integers(0, 300))), max_size=60),
)
def test_it_holds_no_more_than_it_may_and_gives_back_what_was_put(
    most: int, steps: list[tuple[int, int | None]]
) -> None:
    """Under any order of looking and keeping: bounded, exact, and the least recently asked goes first."""
    cache = AnswerCache(most)
    model: dict[bytes, CachedAnswer] = {}  # what a cache without a bound would hold, oldest first
    for number, labels in steps:
        key = bytes([number]) * 32
        if labels is None:
            found = cache.get(key)
            if found is not None:
                assert found == model[key]
                model[key] = model.pop(key)
        else:
            answer = CachedAnswer(prediction(labels), ("a warning",), bytes(labels))
            before = len(cache)
            cache.put(key, answer)
            model.pop(key, None)
            model[key] = answer
            assert cache.get(key) in (answer, None)
            assert len(cache) <= before + 1
        assert cache.size <= most
        assert (cache.size == 0) == (len(cache) == 0)


def test_the_least_recently_asked_goes_first(metric: Callable[..., float]) -> None:
    """A look counts as being asked for; evictions, hits, misses and bytes are counted."""
    answer = CachedAnswer(prediction(3))
    size = 32 + ENTRY_BYTES + len(msgspec.msgpack.encode(answer))
    cache = AnswerCache(2 * size)
    names = [f"trimvit_answer_cache_{name}_total" for name in ("hits", "misses", "evictions")]
    before = [metric(name) for name in names]
    one, two, three = (bytes([number]) * 32 for number in range(3))
    cache.put(one, answer)
    cache.put(two, answer)
    assert cache.get(one) == answer
    cache.put(three, answer)
    assert [cache.get(key) is None for key in (one, two, three)] == [False, True, False]
    assert [metric(name) - old for name, old in zip(names, before, strict=True)] == [3, 1, 1]
    assert metric("trimvit_answer_cache_bytes") == cache.size == 2 * size
    assert repr(cache) == f"<AnswerCache 2 answers, {2 * size} of {2 * size} bytes>"


def test_what_is_too_large_alone_leaves_the_others_in_place() -> None:
    cache = AnswerCache(1000)
    cache.put(b"a" * 32, CachedAnswer(prediction(3)))
    cache.put(b"b" * 32, CachedAnswer(prediction(3), (), bytes(1000)))
    assert cache.get(b"b" * 32) is None
    assert cache.get(b"a" * 32) is not None


class Flights:
    """What is asked for the same key, in any order, with a dispatcher whose outcomes are chosen from outside.

    Whoever computes waits for an outcome: kept, answered without being kept, or failed.
    """

    def __init__(self) -> None:
        self.cache = AnswerCache(CACHE_BYTES)
        self.key = b"a" * 32
        self.computing: list[asyncio.Future[str]] = []
        self.asked: list[asyncio.Task[str]] = []

    async def ask(self) -> str:
        await self.cache.wait(self.key, self.key, 60)
        if self.cache.get(self.key) is not None:
            return "hit"
        with self.cache.computing(self.key):
            mine = asyncio.get_running_loop().create_future()
            self.computing.append(mine)
            try:
                outcome = await mine
            finally:
                self.computing.remove(mine)
            if outcome == "fail":
                raise QueueFull("full", retry_after_s=1.0)
            if outcome == "keep":
                self.cache.put(self.key, CachedAnswer(prediction(1)))
            return outcome

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


@given(
    st.lists(st.sampled_from(["ask", "keep", "lower", "fail", "cancel first", "cancel last"]), max_size=25)
)
def test_equal_images_under_way_are_computed_once_and_none_is_lost(steps: list[str]) -> None:
    """Under any order of asking, answering, failing and cancelling: while one computes what nobody has
    computed yet, the others wait for it; one that fails or is cancelled is followed by the next; nobody waits
    for nothing, and everybody who was not cancelled ends in an answer or in its own failure."""

    async def play() -> None:
        flights = Flights()
        lowered = False
        for step in steps:
            if step == "ask":
                flights.asked.append(asyncio.create_task(flights.ask()))
            elif step.startswith("cancel"):
                waiting = [task for task in flights.asked if not task.done()]
                if waiting:
                    waiting[0 if step == "cancel first" else -1].cancel()
            elif flights.computing:
                flights.computing[0].set_result(step)
                lowered |= step == "lower"
            await flights.settle()
            waiting = [task for task in flights.asked if not task.done()]
            assert bool(waiting) == bool(flights.computing), "somebody waits for nothing"
            if not lowered:
                assert len(flights.computing) <= 1
        while flights.computing:
            flights.computing[0].set_result("keep")
            await flights.settle()
        for task in flights.asked:
            assert task.done()
            assert (
                task.cancelled()
                or isinstance(task.exception(), QueueFull)
                or task.result() in ("hit", "keep", "lower")
            )
        assert not flights.cache._under_way

    asyncio.run(play())


def test_who_waits_for_an_equal_image_waits_no_longer_than_it_may() -> None:
    """And who is not of the same caller does not wait at all."""

    async def play() -> None:
        cache = AnswerCache(CACHE_BYTES)
        key = b"a" * 32
        with cache.computing((key, "alice")):
            with pytest.raises(TimeoutError):
                await cache.wait(key, (key, "alice"), 0.01)
            await cache.wait(key, (key, "bob"), 60)

    asyncio.run(play())


# Through the application.


@pytest.mark.parametrize("fails", [False, True])
def test_equal_images_at_the_same_time_are_computed_once(fails: bool) -> None:
    """One is asked of the dispatcher, and the others get its answer; where it fails, the next is asked."""

    async def play() -> tuple[FakeDispatch, list[httpx.Response]]:
        go_on = asyncio.Event()
        dispatch = FakeDispatch(wait_for=go_on)
        app = create_app(Settings(answer_cache_bytes=CACHE_BYTES), dispatch)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            asked = [asyncio.create_task(client.post("/v1/classify", content=encoded())) for _ in range(4)]
            for _ in range(100):  # until one is asked of the dispatcher, and the others had the time for it
                await asyncio.sleep(0.01 if dispatch.questions else 0.1)
                if len(dispatch.questions) > 1:
                    break
            if fails:
                failing, dispatch.fails = dispatch.questions[0], QueueFull("full", retry_after_s=1.0)
                dispatch.fails_for = lambda question: question is failing
            go_on.set()
            return dispatch, await asyncio.gather(*asked)

    dispatch, answers = asyncio.run(play())
    assert sorted(answer.status_code for answer in answers) == ([200] * 3 + [429] if fails else [200] * 4)
    assert len(dispatch.questions) == (2 if fails else 1)
    statuses = [answer.headers["Cache-Status"] for answer in answers if answer.status_code == 200]
    assert sorted(statuses) == ["trimvit; fwd=miss"] + ["trimvit; hit"] * (len(statuses) - 1)


def post(client: TestClient, path: str = "/v1/classify", **request: Any) -> Any:
    if not request.keys() & {"content", "files", "json"}:
        request["content"] = encoded()
    return client.post(path, **request)


@pytest.mark.parametrize(
    "query",
    ["keep_ratio=0.5&top_k=3", "mask=png&mask_stages=true", "mask=grid&keep_ratio=0.5", "cascade=true", ""],
)
def test_the_same_again_is_answered_without_decoding_or_computing(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch, query: str
) -> None:
    """The answer is the same but for its times, and says where it comes from."""
    client = make_client(answer_cache_bytes=CACHE_BYTES)
    first, second = (post(client, f"/v1/classify?{query}") for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert len(dispatch.questions) == len(dispatch.expected) == 1
    assert first.headers["Cache-Status"] == "trimvit; fwd=miss"
    assert second.headers["Cache-Status"] == "trimvit; hit"
    (one,), (other,) = first.json()["results"], second.json()["results"]
    assert other == {**one, "cached": True}
    assert "cached" not in one
    ClassifyResponse.model_validate_json(second.content, strict=True)
    timings = second.json()["timings_ms"]
    assert (timings["decode"], timings["queue"], timings["compute"]) == (0, 0, 0)
    assert timings["total"] > 0


def test_without_the_setting_nothing_is_kept(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch
) -> None:
    """Off by default: the answer says nothing of a cache."""
    client = make_client()
    answers = [post(client) for _ in range(2)]
    assert len(dispatch.questions) == 2
    assert all("Cache-Status" not in answer.headers for answer in answers)


def test_an_answer_at_a_lower_ratio_is_not_kept(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch
) -> None:
    """A brown-out passes; its answers are no answers to what was asked. One at the asked ratio serves both
    who allow a lower one and who do not."""
    client = make_client(answer_cache_bytes=CACHE_BYTES)
    dispatch.lowers_to = 0.3
    for _ in range(2):
        assert post(client, params={"keep_ratio": 0.5, "min_keep_ratio": 0.3}).json()["results"][0]["lowered"]
    assert len(dispatch.questions) == 2
    dispatch.lowers_to = None
    post(client, params={"keep_ratio": 0.5, "min_keep_ratio": 0.3})
    answer = post(client, params={"keep_ratio": 0.5})
    assert answer.json()["results"][0]["keep_ratio"] == 0.5
    assert answer.headers["Cache-Status"] == "trimvit; hit"
    assert len(dispatch.questions) == 3


def test_a_changed_model_answers_by_itself(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch
) -> None:
    """Under the same name with other weights; and an answer that came while it changed is not kept."""
    client = make_client(answer_cache_bytes=CACHE_BYTES)
    post(client)
    dispatch.model = msgspec.structs.replace(MODEL, fingerprint="new weights")
    assert post(client).headers["Cache-Status"] == "trimvit; fwd=miss"
    assert post(client).headers["Cache-Status"] == "trimvit; hit"
    assert len(dispatch.questions) == 2

    class Changing(FakeDispatch):
        async def classify(self, question: Any, slot: Any) -> Any:
            answer = await super().classify(question, slot)
            self.model = msgspec.structs.replace(MODEL, fingerprint=f"{len(self.questions)}")
            return answer

    changing = Changing()
    with TestClient(create_app(Settings(answer_cache_bytes=CACHE_BYTES), changing)) as other:
        post(other)
        changing.model = MODEL  # the old one is back, and what the new one said is not taken for its answer
        assert post(other).headers["Cache-Status"] == "trimvit; fwd=miss"


@pytest.mark.parametrize("shared", [False, True])
def test_callers_with_keys_share_nothing_unless_it_is_allowed(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch, tmp_path: Path, shared: bool
) -> None:
    """One key's answers are no other's."""
    keys = tmp_path / "keys"
    keys.write_text("alice:alices-secret-key-1\nbob:bobs-secret-key-22\n")
    client = make_client(answer_cache_bytes=CACHE_BYTES, api_keys_file=keys, answer_cache_shared=shared)
    asked = [
        post(client, headers={"X-API-Key": key}).headers["Cache-Status"]
        for key in ("alices-secret-key-1", "bobs-secret-key-22", "alices-secret-key-1", "bobs-secret-key-22")
    ]
    miss, hit = "trimvit; fwd=miss", "trimvit; hit"
    assert asked == ([miss, hit, hit, hit] if shared else [miss, miss, hit, hit])


def test_several_images_say_each_for_itself(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch
) -> None:
    """What is there is taken from the cache, the rest is computed; a broken image is never kept."""
    client = make_client(answer_cache_bytes=CACHE_BYTES)
    other = encoded(Image.new("RGB", (40, 24), (0, 0, 250)))
    post(client)
    files = [("image", encoded()), ("image", other), ("image", other[:50])]
    for hits in (1, 2):
        response = post(client, files=files, params={"errors": "each"})
        assert response.status_code == 207
        assert [result.get("cached", False) for result in response.json()["results"]] == [
            True, hits == 2, False,
        ]  # fmt: skip
        status = response.headers["Cache-Status"]
        expected = "hit" if hits == 2 else "fwd=partial"
        assert status == f'trimvit; {expected}; detail="{hits} of 2 images"'
    assert len(dispatch.questions) == 2


def test_a_hit_needs_no_room_in_the_queue(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch, metric: Callable[..., float]
) -> None:
    """While everything else is refused, by the head or later, what is known is answered; it counts as
    answered, and in no phase that it did not go through."""
    client = make_client(answer_cache_bytes=CACHE_BYTES)
    post(client)
    dispatch.refuses = dispatch.refuses_early = QueueFull("full", retry_after_s=1.0)
    answered = metric("trimvit_images_total", outcome="answered")
    decoded = metric("trimvit_phase_seconds_count", phase="decode")
    assert post(client).headers["Cache-Status"] == "trimvit; hit"
    assert metric("trimvit_images_total", outcome="answered") == answered + 1
    assert metric("trimvit_phase_seconds_count", phase="decode") == decoded
    assert_problem(post(client, params={"top_k": 1}), 429, "queue-full", image=0)


def test_embeddings_and_other_protocols_go_the_same_way(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch
) -> None:
    """/v1/embed, Hugging Face, and /v2 with files and with pixels."""
    client = make_client(answer_cache_bytes=CACHE_BYTES)
    text = base64.b64encode(encoded()).decode()
    pixels = {"name": "pixels", "shape": [1, 2, 2, 3], "datatype": "UINT8", "data": list(range(12))}
    file = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}
    asked: list[tuple[str, Any]] = [
        ("/v1/embed", {"image": text}),
        ("/models/toy", {"inputs": text}),
        ("/v2/models/toy/infer", {"inputs": [file]}),
        ("/v2/models/toy/infer", {"inputs": [pixels]}),
    ]
    for path, body in asked:
        before = len(dispatch.questions)
        first, second = (client.post(path, json=body) for _ in range(2))
        assert first.status_code == second.status_code == 200, first.text
        assert second.headers["Cache-Status"] == "trimvit; hit", path
        assert len(dispatch.questions) <= before + 1
