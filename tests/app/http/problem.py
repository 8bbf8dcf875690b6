"""What every error answer must be."""

from collections.abc import Sequence

import httpx

from app.http.schemas import ProblemDocument


def assert_problem(
    response: httpx.Response, status: int, slug: str, *words: str, image: int | None = None
) -> ProblemDocument:
    """The response is a problem document of this status and type that says all of these words."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["X-Request-ID"]
    document = ProblemDocument.model_validate_json(response.content, strict=True)
    assert set(response.json()) <= set(ProblemDocument.model_fields), "no undeclared member"
    assert document.status == status
    assert document.type == f"urn:trimvit:problem:{slug}"
    assert document.title
    assert document.image == image
    assert_says(document.detail, words)
    return document


def assert_says(text: str, words: Sequence[str]) -> None:
    for word in words:
        assert word in text, f"{word!r} is not in {text!r}"
