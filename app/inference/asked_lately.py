"""A cache of parsed options, because clients send the same options repeatedly."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from app.dispatch.questions import Expected
from app.inference.asks import ask_of
from app.inference.expected import expected
from app.inference.option_layers import options_of, single_values
from app.inference.options import EmbedOptions, ImageOptions
from app.messages.image import Ask
from app.messages.model import ModelInfo
from app.priority import Priority
from app.settings.settings import Settings

_T = TypeVar("_T")

_MOST, _LONGEST_QUERY = 1024, 512


class AskedLately:
    """Caches, for each model, the request that follows from the options of images, and what is known of
    it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._of_models: dict[str, _OfModel] = {}

    def known(
        self,
        options: ImageOptions,
        model: ModelInfo,
        highest: Priority,
        *,
        logits: bool = False,
        features: bool = False,
    ) -> tuple[Ask, Expected]:
        """The request to the model, and what is known of the image except for its caller, who may not use a
        priority above ``highest``. Raises InvalidValue, NoClasses or PriorityNotAllowed."""
        found = self._of_models.get(model.name)
        if found is None or found.model is not model:
            found = self._of_models[model.name] = _OfModel(self._settings, model)
        return found.known(options, highest, logits=logits, features=features)


class _OfModel:
    def __init__(self, settings: Settings, model: ModelInfo) -> None:
        self.model = model
        self._settings = settings
        self._known: dict[tuple[ImageOptions, bool, Priority, bool, bool], tuple[Ask, Expected]] = {}
        # The same, by the identity of the options, which are kept alive. Most requests share the same options
        # object (`by_query`), and hashing it would take most of the time here.
        self._same: dict[tuple[int, Priority, bool, bool], tuple[ImageOptions, tuple[Ask, Expected]]] = {}

    def known(
        self,
        options: ImageOptions,
        highest: Priority,
        *,
        logits: bool,
        features: bool,
    ) -> tuple[Ask, Expected]:
        if len(self._same) >= _MOST:
            self._known.clear()
            self._same.clear()
        same = self._same.get((id(options), highest, logits, features))
        if same is not None:
            return same[1]
        # Equal options may differ in whether the priority was set explicitly.
        key = options, "priority" in options.model_fields_set, highest, logits, features
        found = self._known.get(key)
        if found is None:
            ask = ask_of(options, self._settings, self.model, logits=logits, features=features)
            found = ask, expected(options, ask, self._settings, self.model, highest)
            self._known[key] = found
        self._same[id(options), highest, logits, features] = options, found
        return found


def by_query(function: Callable[[bytes], _T]) -> Callable[[bytes], _T]:
    """A cached version of a function of a query; long queries have a cache of their own. Its result must not
    be changed."""
    remembering = lru_cache(_MOST)(function)

    @wraps(function)
    def lately(query: bytes) -> _T:
        return (remembering if len(query) <= _LONGEST_QUERY else function)(query)

    return lately


@by_query
def values_of_query(query: bytes) -> dict[str, Any]:
    """The names and values of a query, which must not be changed. Raises InvalidValue for a name that occurs
    twice."""
    return single_values(parse_qsl(query.decode("latin-1"), keep_blank_values=True))


@by_query
def options_of_query(query: bytes) -> ImageOptions:
    """The options of the one image of a request with this query. Raises InvalidValue."""
    return options_of(values_of_query(query), 0)


@by_query
def embed_options_of_query(query: bytes) -> EmbedOptions:
    """As `options_of_query`, for an image whose embedding is requested."""
    return options_of(values_of_query(query), 0, options_type=EmbedOptions)
