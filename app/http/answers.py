"""Results as JSON bytes, and their headers."""

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, Protocol

import msgspec

from app.errors import Problem
from app.inference.embeddings import embedding_result
from app.inference.results import image_result

_P = ParamSpec("_P")

WARNINGS_HEADER = "Image-Warnings"
WARNINGS_HEADER_SCHEMA: dict[str, Any] = {
    WARNINGS_HEADER: {
        "description": "Warnings about how images were read, each with the index of its image in the "
        "request. "
        "Only present if there are any.",
        "schema": {"type": "string"},
        "required": False,
    }
}
# Proxies reject headers of several kilobytes.
_LONGEST_HEADER = 1000


def _in_json(result_of: Callable[_P, dict[str, Any]]) -> Callable[_P, bytes]:
    """What the function returns for one image, as JSON."""

    def in_json(*args: _P.args, **kwargs: _P.kwargs) -> bytes:
        return _json(result_of(*args, **kwargs))

    return in_json


result_json = _in_json(image_result)
embedding_json = _in_json(embedding_result)


def problem_json(problem: Problem) -> bytes:
    """A ProblemDocument of the schemas as JSON."""
    return _json(problem.to_dict())


def status_and_headers(images: Sequence[object]) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer to these images, some of which may be problems: 207 (RFC 4918, section
    13) if any is, and Retry-After with the longest of their times."""
    problems = [image for image in images if isinstance(image, Problem)]
    if not problems:
        return 200, {}
    headers = [problem.headers() for problem in problems]
    return 207, max(headers, key=lambda each: int(each.get("Retry-After", 0)))


def pieces_of_results(model: str, results: Sequence[bytes], timings_ms: dict[str, float]) -> list[bytes]:
    """A ClassifyResponse or EmbedResponse of the schemas as JSON, in pieces, from results that are JSON
    already."""
    pieces = [b'{"model":' + _json(model) + b',"results":[']
    for number, result in enumerate(results):
        pieces += (b",", result) if number else (result,)
    return [*pieces, b'],"timings_ms":' + _json(timings_ms) + b"}"]


_encoder = msgspec.json.Encoder()


def _json(value: object) -> bytes:
    """Encode as JSON. Numbers that JSON does not have would become null: see check_numbers."""
    return _encoder.encode(value)


class Answered(Protocol):
    """An image that was answered."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the sender about how the image was read."""

    @property
    def cached(self) -> bool | None:
        """Whether the answer is from the answer cache. None if there is no cache."""


def warning_headers(answered: Sequence[Answered | Problem]) -> dict[str, str]:
    """The header with the ``warnings`` of the results, also for answers whose body has no place for them."""
    told = "; ".join(
        f"image {index}: {warning}"
        for index, image in enumerate(answered)
        if not isinstance(image, Problem)
        for warning in image.warnings
    )
    if not told:
        return {}
    plain = told.encode("ascii", "replace").decode()
    cut = plain if len(plain) <= _LONGEST_HEADER else f"{plain[: _LONGEST_HEADER - 3]}..."
    return {WARNINGS_HEADER: cut}


def image_headers(answered: Sequence[Answered | Problem]) -> dict[str, str]:
    """Headers about the images: their warnings, and whether the answers come from the answer cache
    (Cache-Status, RFC 9211)."""
    asked = [
        image.cached for image in answered if not isinstance(image, Problem) and image.cached is not None
    ]
    if not asked:
        return warning_headers(answered)
    hits = sum(asked)
    status = "hit" if hits == len(asked) else f"fwd={'partial' if hits else 'miss'}"
    several = f'; detail="{hits} of {len(asked)} images"' if len(asked) > 1 else ""
    return {"Cache-Status": f"trimvit; {status}{several}", **warning_headers(answered)}


def server_timing(timings_ms: dict[str, float]) -> str:
    """The value of a Server-Timing header (W3C Server Timing, section 4)."""
    return ", ".join(f"{phase};dur={duration:.3f}" for phase, duration in timings_ms.items())


def longest(durations_s: Sequence[float]) -> float:
    """The longest in milliseconds; 0 if there are none."""
    return round(max(durations_s, default=0.0) * 1000, 3)
