"""Whether images are answered: what probes are told."""

from concurrent.futures import Executor
from dataclasses import dataclass

from app.decoding import DecodingProcesses
from app.http.classify import Engines


@dataclass(frozen=True, slots=True)
class Health:
    """Of a front end: its engines', and that of what makes images ready for them."""

    engines: Engines
    decoders: Executor

    def is_ready(self) -> bool:
        """Whether images are answered."""
        return self.engines.model is not None and self._decoders_trouble() is None

    def look_for_trouble(self) -> str | None:
        """Why none are, where that is not expected to pass soon."""
        return self.engines.trouble or self._decoders_trouble()

    def _decoders_trouble(self) -> str | None:
        return self.decoders.look_for_trouble() if isinstance(self.decoders, DecodingProcesses) else None
