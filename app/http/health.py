"""Readiness, as reported to probes."""

from dataclasses import dataclass, field

from app.decoding.pool import Decoders
from app.http.dispatch import Dispatch
from app.http.server.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Health:
    """The readiness of a front end: of its workers, and of the decoders. ``traffic`` says whether it is
    stopping."""

    dispatch: Dispatch
    decoders: Decoders
    traffic: Traffic = field(default_factory=Traffic)

    def is_ready(self) -> bool:
        """Whether the server is ready to answer images."""
        if self.traffic.stopping:
            return False
        return self.dispatch.model is not None and self.decoders.look_for_trouble() is None

    def look_for_trouble(self) -> str | None:
        """Why images are not answered, if that is not expected to pass soon."""
        if self.traffic.stopping:
            return "the server is shutting down"
        return self.dispatch.trouble or self.decoders.look_for_trouble()
