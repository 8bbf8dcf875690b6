"""Results as bytes of JSON, and the headers beside them."""

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, Protocol

import msgspec

from app.inference.embeddings import embedding_result
from app.inference.results import image_result

_P = ParamSpec("_P")

WARNINGS_HEADER = "Image-Warnings"
WARNINGS_HEADER_SCHEMA: dict[str, Any] = {
    WARNINGS_HEADER: {
        "description": "What the sender should know of how an image was read, each warning with the image's "
        "place in the request; only where there is something to say.",
        "schema": {"type": "string"},
        "required": False,
    }
}
# Proxies refuse headers of several kilobytes.
_LONGEST_HEADER = 1000


def _in_json(result_of: Callable[_P, dict[str, Any]]) -> Callable[_P, bytes]:
    """What the function says of one image, as JSON."""

    def in_json(*args: _P.args, **kwargs: _P.kwargs) -> bytes:
        return _json(result_of(*args, **kwargs))

    return in_json


result_json = _in_json(image_result)
embedding_json = _in_json(embedding_result)


def pieces_of_results(model: str, results: Sequence[bytes], timings_ms: dict[str, float]) -> list[bytes]:
    """A ClassifyResponse or EmbedResponse of the schemas as JSON, in pieces, of results that are JSON."""
    pieces = [b'{"model":' + _json(model) + b',"results":[']
    for number, result in enumerate(results):
        pieces += (b",", result) if number else (result,)
    return [*pieces, b'],"timings_ms":' + _json(timings_ms) + b"}"]


_encoder = msgspec.json.Encoder()


def _json(value: object) -> bytes:
    """Numbers that JSON does not have would be null: see check_numbers."""
    return _encoder.encode(value)


class Answered(Protocol):
    """An image that was answered."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its sender should know of how it was read."""


def warning_headers(answered: Sequence[Answered]) -> dict[str, str]:
    """The header that says what the results' ``warnings`` say, for answers that have no place for them."""
    told = "; ".join(
        f"image {index}: {warning}" for index, image in enumerate(answered) for warning in image.warnings
    )
    if not told:
        return {}
    plain = told.encode("ascii", "replace").decode()
    cut = plain if len(plain) <= _LONGEST_HEADER else f"{plain[: _LONGEST_HEADER - 3]}..."
    return {WARNINGS_HEADER: cut}


def server_timing(timings_ms: dict[str, float]) -> str:
    """The value of a Server-Timing header (W3C Server Timing, section 4)."""
    return ", ".join(f"{phase};dur={duration:.3f}" for phase, duration in timings_ms.items())


def longest(durations_s: Sequence[float]) -> float:
    """Milliseconds of the longest."""
    return round(max(durations_s) * 1000, 3)
