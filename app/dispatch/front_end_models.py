"""The models that a front end knows as served, and the requests that still use them.

The dispatcher no longer lists a model that is unloaded. The front end reports when its last request for it
has ended.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from app.dispatch.policy.shares import unpruned_macs
from app.errors import NotFound
from app.messages.model import ModelInfo


@dataclass(slots=True)
class FrontEndModels:
    """``left`` is called with the name of a model that is no longer served, once no request uses it."""

    left: Callable[[str], None]
    now: dict[str, ModelInfo] = field(default_factory=dict)  # the default model first
    # Cost of an unpruned image of each model, relative to the default model.
    _weights: dict[str, float] = field(default_factory=dict)
    _leaving: dict[str, ModelInfo] = field(default_factory=dict)
    _requests: dict[str, int] = field(default_factory=dict)

    def told(self, infos: Sequence[ModelInfo]) -> None:
        """Set the served models. Models that have not changed stay the same objects."""
        before, self.now = self.now, {}
        for info in infos:
            known = before.get(info.name)
            self.now[info.name] = known if known is not None and known == info else info
            self._leaving.pop(info.name, None)
        default = unpruned_macs(infos[0])
        self._weights |= {info.name: unpruned_macs(info) / default for info in infos}
        for name, info in before.items():
            if name not in self.now:
                self._leaving[name] = info
                self._leave_if_unused(name)

    def named(self, name: str) -> ModelInfo | None:
        """The model of that name, even if it is being unloaded. None if there is none."""
        return self.now.get(name) or self._leaving.get(name)

    def weight(self, name: str) -> float:
        """The cost of an unpruned image of that model, in unpruned images of the default model."""
        return self._weights.get(name, 1.0)

    def using(self, model: ModelInfo) -> "_Using":
        """A context manager for a request for that model. Raises NotFound if it is not served any more."""
        name = model.name
        served = self.now.get(name)
        if served is not model and (served is None or not served.serves_as(model)):
            raise NotFound(f"the model {name!r} was unloaded while the request was arriving")
        return _Using(self, name)

    def begin(self, name: str) -> None:
        """Count one more request for that model."""
        self._requests[name] = self._requests.get(name, 0) + 1

    def end(self, name: str) -> None:
        """Count the end of a request."""
        self._requests[name] -= 1
        if not self._requests[name]:
            del self._requests[name]
            self._leave_if_unused(name)

    def _leave_if_unused(self, name: str) -> None:
        if name not in self._requests and self._leaving.pop(name, None) is not None:
            self.left(name)


@dataclass(frozen=True, slots=True)
class _Using:
    """Counts a request. (A generator would take three times as long to enter and leave.)"""

    models: FrontEndModels
    name: str

    def __enter__(self) -> None:
        self.models.begin(self.name)

    def __exit__(self, *_: object) -> None:
        self.models.end(self.name)
