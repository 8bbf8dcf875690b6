"""The `{"error": "..."}` of routes for clients of other servers (app.http.paths), for OpenAPI."""

from typing import Any

from pydantic import BaseModel, Field

from app.http.bodies.content import JSON
from app.http.problems import PROBLEMS


class ErrorAnswer(BaseModel):
    """What was wrong, what is allowed, and what to do."""

    error: str = Field(description="In words.", examples=["there is no model 'vit'; allowed is 'toy'"])


def errors(*statuses: int | str) -> dict[int | str, dict[str, Any]]:
    """The errors of a route for clients of other servers, for OpenAPI."""
    problems = {**PROBLEMS, 404: {"description": "There is no such model or version.", "headers": {}}}
    return {
        status: {
            "description": problems[status]["description"],
            "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{ErrorAnswer.__name__}"}}},
            "headers": problems[status]["headers"],
        }
        for status in statuses
    }
