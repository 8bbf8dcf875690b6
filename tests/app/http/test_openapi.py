"""The published OpenAPI document is true: what it declares is what comes, whatever is sent."""

import base64
import copy
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from starlette.types import Receive, Scope, Send

from app.http.schemas import ImageOptions
from app.main import create_app
from app.settings import Settings
from models.schedule import REDUCERS
from tests.app.fakes import FakeEngines, encoded

APP = create_app(Settings(), FakeEngines())
DOCUMENT: dict[str, Any] = APP.openapi()


async def _without_end(scope: Scope, receive: Receive, send: Send) -> None:
    """The application, whose life Schemathesis would end after every request."""
    if scope["type"] != "lifespan":
        await APP(scope, receive, send)
        return
    for step in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{step}.complete"})


SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", _without_end)
SOUND = encoded()

# A schema cannot say that keep_ratio, compute, keep_mass and cascade exclude one another, nor which bytes
# are an image; an option that another goes before is not looked at; and 504 is the right answer to a
# deadline of a millisecond.
EXCLUDED = [positive_data_acceptance, negative_data_rejection, not_a_server_error]


@SCHEMA.parametrize()
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_declared(case: schemathesis.Case) -> None:
    """Statuses, content types, headers and bodies conform to the document, for sound requests and others."""
    _ask(case)
    if _with_sound_images(case):
        _ask(case)


def _ask(case: schemathesis.Case) -> None:
    response = case.call()
    case.validate_response(response, excluded_checks=EXCLUDED)
    assert response.status_code not in (500, 503), response.text
    if response.status_code == 504:
        assert "deadline_ms" in f"{case.query}{case.body}"


def _with_sound_images(case: schemathesis.Case) -> bool:
    """Put a real image wherever the case has made one up: else hardly a request would get past decoding."""
    body: Any = copy.deepcopy(case.body)  # cases share what they are made of
    if case.media_type == "application/octet-stream":
        case.body = SOUND
        return True
    if not isinstance(body, dict):
        return False
    if case.media_type == "multipart/form-data" and isinstance(body.get("image"), list):
        body["image"] = [SOUND for _ in body["image"]]
        case.body = body
        return True
    if case.media_type == "application/json":
        images = body.get("images")
        places = images if isinstance(images, list) else [body]
        for place in places:
            if isinstance(place, dict) and isinstance(place.get("image"), str):
                place["image"] = base64.b64encode(SOUND).decode()
        case.body = body
        return True
    return False


def test_every_route_is_in_the_document() -> None:
    """What clients and operators call is published, and nothing else is."""
    assert {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods} == {
        ("/v1/classify", "post"),
        ("/v1/models", "get"),
        ("/v1/stats", "get"),
        ("/livez", "get"),
        ("/readyz", "get"),
        ("/metrics", "get"),
    }


@pytest.mark.parametrize("status", ["400", "413", "415", "422", "429", "503", "504"])
def test_every_error_of_classify_is_declared_as_a_problem(status: str) -> None:
    """Each status has its meaning in words and the problem document as its schema."""
    declared = DOCUMENT["paths"]["/v1/classify"]["post"]["responses"][status]
    assert declared["description"]
    schema = declared["content"]["application/problem+json"]["schema"]
    assert {"type", "title", "status", "detail"} == set(schema["required"])
    assert ("Retry-After" in declared["headers"]) == (status in ("429", "503"))


def test_the_query_takes_every_option() -> None:
    """Options of the query are the options, described, and cannot be null."""
    parameters = {
        parameter["name"]: parameter for parameter in DOCUMENT["paths"]["/v1/classify"]["post"]["parameters"]
    }
    assert set(parameters) == set(ImageOptions.model_fields)
    for parameter in parameters.values():
        assert parameter["in"] == "query"
        assert parameter["description"]
        assert "null" not in str(parameter["schema"])
        assert parameter["schema"]["type"] in ("number", "integer", "string", "boolean")
    for share in ("keep_ratio", "compute", "keep_mass"):
        assert parameters[share]["schema"]["exclusiveMinimum"] == 0
        assert parameters[share]["schema"]["maximum"] == 1
    assert parameters["reducer"]["schema"]["enum"] == list(REDUCERS)


def test_all_forms_of_the_body_are_declared() -> None:
    """Raw, form and JSON; the form with its options as fields."""
    content = DOCUMENT["paths"]["/v1/classify"]["post"]["requestBody"]["content"]
    assert set(content) == {"image/*", "application/octet-stream", "multipart/form-data", "application/json"}
    fields = content["multipart/form-data"]["schema"]["properties"]
    assert set(fields) == {"image", "options", *ImageOptions.model_fields}


def test_probes_and_metrics_have_their_content_types() -> None:
    """JSON for probes, ready or not, and text for Prometheus."""
    paths = DOCUMENT["paths"]
    for status in ("200", "503"):
        content = paths["/readyz"]["get"]["responses"][status]["content"]
        assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/Readiness"}
    assert "text/plain" in paths["/metrics"]["get"]["responses"]["200"]["content"]
