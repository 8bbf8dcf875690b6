"""The error tree: who is to blame, which status, what is said."""

import math

import pytest

from app import errors
from app.errors import ClientProblem, NotReady, Problem, QueueFull, ServerProblem, TooLarge

# What DESIGN allows on /v1, what every HTTP server needs, a fault of our own, and what changing models needs.
STATUSES = {400, 408, 413, 415, 417, 421, 422, 429, 431, 503, 504} | {401, 403, 404, 405} | {500} | {409, 507}

PROBLEMS = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, Problem) and hasattr(cls, "status")
]


def test_every_slug_is_its_own() -> None:
    """Programs tell problems apart by their type."""
    slugs = [problem.slug for problem in PROBLEMS]
    assert len(slugs) > 8
    assert len(set(slugs)) == len(slugs)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.__name__)
def test_every_problem_has_a_fitting_status_and_words(problem: type[Problem]) -> None:
    """4xx where the client can mend it (and 429), 5xx where the server cannot now; a slug that fits in a URN;
    a title of its own; a docstring."""
    assert problem.status in STATUSES
    if issubclass(problem, ClientProblem):
        assert 400 <= problem.status < 500
        assert problem.status != 429
    else:
        assert issubclass(problem, ServerProblem)
        assert problem.status >= 500 or problem.status == 429
    assert problem.slug.replace("-", "").isalpha()
    assert problem.slug == problem.slug.lower()
    assert sum(other.title == problem.title for other in PROBLEMS) == 1
    assert problem.__doc__


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.__name__)
def test_every_problem_is_a_problem_document(problem: type[Problem]) -> None:
    """The members of RFC 9457, with the class's own values and what the instance says."""
    assert problem("what was wrong").to_dict() == {
        "type": f"urn:trimvit:problem:{problem.slug}",
        "title": problem.title,
        "status": problem.status,
        "detail": "what was wrong",
    }
    assert str(problem("what was wrong")) == "what was wrong"


@pytest.mark.parametrize("image", [0, 3])
def test_the_image_at_fault_is_a_member_of_its_own(image: int) -> None:
    """The first image, too, which is number 0."""
    assert TooLarge("much", image=image).to_dict()["image"] == image


@pytest.mark.parametrize(
    ("seconds", "header"), [(None, None), (0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (59.5, "60")]
)
def test_retry_after_is_in_whole_seconds_rounded_up(seconds: float | None, header: str | None) -> None:
    """A client that waits as long as it was told does not come too early, nor hammers at 0."""
    assert QueueFull("full", retry_after_s=seconds).headers().get("Retry-After") == header


@pytest.mark.parametrize("seconds", [math.inf, -math.inf, math.nan, 1e300, -5.0, 0.0, 0.1, 7.2, 10**9, None])
def test_no_number_of_seconds_breaks_an_answer(seconds: float | None) -> None:
    """Retry-After is a whole number from 1 to an hour's seconds, or not there where nobody knows."""
    headers = NotReady("not yet", retry_after_s=seconds).headers()
    if seconds is None or not math.isfinite(seconds):
        assert headers == {}
    else:
        assert 1 <= int(headers["Retry-After"]) <= 3600
