"""From a request's images to their answers, the same for every route that takes images."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Scope

from app.decoding.image_work import ImageWork
from app.dispatch.policy.smoothed import Smoothed
from app.dispatch.questions import Expected, Question
from app.dispatch.slot import Slot
from app.errors import DeadlinePassed, NotFound, Problem
from app.http.answer_cache import AnswerCache
from app.http.arrival import images_answered, seconds_since
from app.http.bodies.content import BodyLimits
from app.http.bodies.memory import share_of
from app.http.callers import caller_of, max_priority_of, named_caller_of
from app.http.client_gone import unless_gone
from app.http.dispatch import Dispatch
from app.http.images import AnsweredImage, RequestedImage, for_cache, from_cache
from app.http.in_time import in_time
from app.http.model_choice import found_model, model_named
from app.http.outcomes import Answers, Outcomes, all_or_first_problem, answers_or_problems
from app.inference.asked_lately import AskedLately
from app.inference.asks import requested_keep_ratio
from app.inference.expected import deadline_s_of, longest_default_deadline_s
from app.inference.options import ImageOptions
from app.inference.results import check_numbers
from app.messages.image import Ask
from app.messages.model import ModelInfo
from app.messages.repository import ModelEntry
from app.priority import Priority
from app.settings.settings import Settings
from app.telemetry import metrics, tallies, tracing

_T = TypeVar("_T")


class Classification:
    """Answers the images of a request, the same for every route that takes images.

    ``work`` decodes images and renders large answers.
    """

    def __init__(self, settings: Settings, dispatch: Dispatch, work: ImageWork) -> None:
        self.body_limits = BodyLimits(
            settings.max_body_bytes, settings.max_images_per_request, longest_default_deadline_s(settings)
        )
        self.work = work
        self._settings, self._dispatch = settings, dispatch
        self._lately = AskedLately(settings)
        self._decode = Smoothed()
        self._cache = AnswerCache(settings.answer_cache_bytes) if settings.answer_cache_bytes else None

    @property
    def model_now(self) -> ModelInfo | None:
        """The model; None while no worker is ready."""
        return self._dispatch.model

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        """All models by name, the default one first, even while no worker is ready, if one was ready
        before."""
        return self._dispatch.models

    def max_priority_of(self, scope: Scope) -> Priority:
        """The highest priority that the request's caller may use."""
        return max_priority_of(scope, self._settings)

    def expected(self, options: ImageOptions, model: ModelInfo, highest: Priority) -> Expected:
        """What is known of an image before it has arrived, except for its caller, who may not use a priority
        above ``highest``. Raises InvalidValue or PriorityNotAllowed."""
        return self._lately.known(options, model, highest)[1]

    def refusal(self, expected: Expected, caller: str, gone_s: float) -> Problem | None:
        """The refusal that is certain for such an image of this caller, whose request arrived that long ago.
        None if it may be accepted, or if its answer may be in the cache."""
        if self._cache is not None:
            return None
        return self._dispatch.refusal(self._left_of(expected, caller, gone_s))

    async def model(
        self, request: Request, options: Sequence[ImageOptions], in_path: str | None = None
    ) -> ModelInfo:
        """The model that images with these ``options`` name. While no worker is ready, this waits until the
        first of their deadlines, which count from the arrival of the request, and as long as the client of
        ``request``, whose body has been read, is connected. ``in_path``: the model that the path names, whose
        default deadline is used. Raises NotReady, QueueFull, DeadlinePassed, ClientDisconnect, NotFound for
        an unknown model, or InvalidValue for several."""
        with Outcomes(len(options)):
            asked = in_path or options[0].model or self._settings.models[0].name
            deadline_s = min(deadline_s_of(each, self._settings, asked) for each in options)
            left_s = deadline_s - seconds_since(request.scope)
            model = self._dispatch.model
            if model is None and left_s > 0:
                model = await unless_gone(request, self._dispatch.wait_until_ready(left_s))
            if model is None:
                raise _passed_on_the_way(deadline_s)
            name = model_named(options)
            return model if name in (None, model.name) else self.found(name)

    def found(self, name: str) -> ModelInfo:
        """The model of that name. Raises NotFound."""
        self.refuse_unloaded(name)
        return found_model(self.models, name)

    def unloaded(self, name: str) -> ModelEntry | None:
        """The model of that name, if it may be loaded and is not served now."""
        if name in self.models:
            return None
        return next((each for each in self._dispatch.repository if each.name == name), None)

    def refuse_unloaded(self, name: str) -> None:
        """Raises NotFound for a model that may be loaded and is not loaded."""
        if self.unloaded(name) is not None:
            served = ", ".join(map(repr, self.models))
            raise NotFound(f"the model {name!r} is not loaded; loaded models: {served}")

    async def answers(
        self,
        request: Request,
        images: Sequence[RequestedImage],
        model: ModelInfo,
        *,
        logits: bool = False,
        features: bool = False,
    ) -> list[AnsweredImage]:
        """All answers in order, with ``logits`` of all classes and with ``features`` if requested, or the
        first Problem. Deadlines count from the arrival of the request. Raises ClientDisconnect if the client,
        whose body has been read, disconnects first."""
        answered = await self._each(
            request, images, model, all_or_first_problem, logits=logits, features=features
        )
        metrics.labelled(metrics.IMAGES, "answered").inc(len(images))
        return answered

    async def answers_or_problems(
        self,
        request: Request,
        images: Sequence[RequestedImage],
        model: ModelInfo,
        *,
        logits: bool = False,
        features: bool = False,
    ) -> list[AnsweredImage | Problem]:
        """As `answers`. If the images' options ask for an answer for each, the problem of an image takes the
        place of its answer."""
        if images[0].options.errors == "first":
            return [*await self.answers(request, images, model, logits=logits, features=features)]
        each = await self._each(request, images, model, answers_or_problems, logits=logits, features=features)
        for one in each:
            outcome = one.slug if isinstance(one, Problem) else "answered"
            metrics.labelled(metrics.IMAGES, outcome).inc()
        return each

    async def _each(
        self,
        request: Request,
        images: Sequence[RequestedImage],
        model: ModelInfo,
        gathered: Callable[[Answers[AnsweredImage]], Coroutine[Any, Any, list[_T]]],
        *,
        logits: bool = False,
        features: bool,
    ) -> list[_T]:
        """The outcome of each image, combined by ``gathered``."""
        with Outcomes(len(images), model.name, request.scope), self._dispatch.using(model):
            work = [
                self._answer(image, index, model, request.scope, logits=logits, features=features)
                for index, image in enumerate(images)
            ]
            found = await unless_gone(request, gathered(work))
        images_answered(request.scope)
        return found

    def _left_of(self, known: Expected, caller: str, gone_s: float) -> Expected:
        """What is known of an image, with the time that will be left after decoding, according to recent
        images."""
        left_s = known.deadline_s - gone_s - self._decode.allowance_s(known.deadline_s)
        return Expected(known.share, left_s, known.wait_limit_s, caller, known.priority, known.model)

    async def _answer(
        self,
        image: RequestedImage,
        index: int,
        model: ModelInfo,
        scope: Scope,
        *,
        logits: bool,
        features: bool,
    ) -> AnsweredImage:
        try:
            if image.problem is not None:
                raise image.problem
            highest = max_priority_of(scope, self._settings)
            ask, known = self._lately.known(image.options, model, highest, logits=logits, features=features)
            if isinstance(ratio := requested_keep_ratio(image.options, ask), float):
                tallies.observe(metrics.REQUESTED_KEEP_RATIO, ratio)
            if seconds_since(scope) >= known.deadline_s:
                raise _passed_on_the_way(known.deadline_s)
            if self._cache is None:
                return await self._computed(image, index, model, ask, known, scope)
            key = await self._key(self._cache, image, model, ask, scope)
            # Only wait for requests of the same caller and priority, so that no request waits for another
            # caller's place in the queue.
            asked = (key, caller_of(scope), known.priority)
            try:
                await self._cache.wait(key, asked, known.deadline_s - seconds_since(scope))
            except TimeoutError:
                raise DeadlinePassed(
                    "the deadline passed while another request computed the same image; allow more time "
                    "(deadline_ms)"
                ) from None
            if (found := self._cache.get(key)) is not None:
                return from_cache(found, model, ask, scope)
            with self._cache.computing(asked):
                answered = await self._computed(image, index, model, ask, known, scope)
                if answered.answer.lowered is None and self.models.get(model.name) is model:
                    self._cache.put(key, for_cache(answered))
            return replace(answered, cached=False)
        except Problem as problem:
            problem.image = index
            raise

    async def _computed(
        self,
        image: RequestedImage,
        index: int,
        model: ModelInfo,
        ask: Ask,
        known: Expected,
        scope: Scope,
    ) -> AnsweredImage:
        wants_picture = image.options.mask == "png"
        with self._dispatch.slot() as slot:
            warnings, decode_s = await self._decoded(image, model, known, slot, scope)
            tracing.phase("decode", index, decode_s)
            if wants_picture:
                share_of(scope).take(slot.size)  # held until the response is written
            question = self._question(image.options, ask, known, scope)
            answer = await self._dispatch.classify(question, slot)
            picture = slot.copy() if wants_picture else None
        found = answer.prediction
        check_numbers(found, model)
        tracing.phase("queue", index, answer.queue_s, ended_s_ago=answer.compute_s)
        tracing.phase("compute", index, answer.compute_s, keep_ratio=found.keep_ratio, compute=found.compute)
        return AnsweredImage(ask, answer, decode_s, warnings, picture)

    async def _key(
        self, cache: AnswerCache, image: RequestedImage, model: ModelInfo, ask: Ask, scope: Scope
    ) -> bytes:
        """The key of the image's answer in the cache."""
        shape, data = image.content
        caller = None if self._settings.answer_cache_shared else named_caller_of(scope)
        picture = image.options.mask == "png"

        def key() -> bytes:
            return cache.key(model, ask, data, shape=shape, picture=picture, caller=caller)

        return await share_of(scope).run_if_large(image.size, key)

    async def _decoded(
        self, image: RequestedImage, model: ModelInfo, known: Expected, slot: Slot, scope: Scope
    ) -> tuple[tuple[str, ...], float]:
        """Decode the image into the slot. Returns its warnings and the seconds it took. Raises DeadlinePassed
        as soon as the deadline has passed, whatever the image is waiting for."""
        started = time.perf_counter()
        caller = caller_of(scope)
        with self._dispatch.expecting(self._left_of(known, caller, seconds_since(scope))):
            left_s = known.deadline_s - seconds_since(scope)
            decoding = image.decode(model.input, self.work, caller, slot.write)
            try:
                warnings = await in_time(decoding, asyncio.get_running_loop().time() + left_s)
            except TimeoutError:
                raise _passed_while_decoding() from None
        decode_s = time.perf_counter() - started
        self._decode.observe(decode_s)
        return warnings, decode_s

    @staticmethod
    def _question(options: ImageOptions, ask: Ask, known: Expected, scope: Scope) -> Question:
        """The question about a decoded image for the dispatcher. Raises DeadlinePassed."""
        left_s = known.deadline_s - seconds_since(scope)
        if left_s <= 0:
            raise _passed_while_decoding()
        return Question(
            ask=ask,
            deadline_s=left_s,
            own_deadline=options.deadline_ms is not None,
            caller=caller_of(scope),
            priority=known.priority,
            model=known.model,
        )


def _passed_while_decoding() -> DeadlinePassed:
    return DeadlinePassed(
        "the deadline passed while the image was being decoded; allow more time (deadline_ms), or send a "
        "smaller image"
    )


def _passed_on_the_way(deadline_s: float) -> DeadlinePassed:
    return DeadlinePassed(
        f"the deadline of {deadline_s * 1000:.0f} ms passed before the whole request had arrived; "
        "it starts when the head of the request arrives"
    )
