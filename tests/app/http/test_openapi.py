"""The published OpenAPI document is true: what it declares is what comes, whatever is sent."""

import base64
import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from app.inference.options import EmbedOptions, ImageOptions
from app.main import create_app
from app.settings.settings import Settings
from models.schedule import REDUCERS
from tests.app.fakes import MODEL, FakeDispatch, encoded
from tests.support.examples import examples

APP = create_app(Settings(), FakeDispatch())
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
BASE64 = base64.b64encode(SOUND).decode()

# A schema cannot say that keep_ratio, compute, keep_mass and cascade exclude one another, nor which bytes
# are an image; an option that another goes before is not looked at; and 504 is the right answer to a
# deadline of a millisecond.
EXCLUDED = [positive_data_acceptance, negative_data_rejection, not_a_server_error]


@SCHEMA.parametrize()
@settings(max_examples=examples(25), suppress_health_check=list(HealthCheck))
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
        assert re.search("deadline_ms|timeout", f"{case.query}{case.body}")


def _with_sound_images(case: schemathesis.Case) -> bool:
    """Put a real image wherever the case has made one up, and the model's name: else hardly a request would
    get past decoding."""
    if case.path_parameters:
        case.path_parameters = {"model_name": MODEL.name, "model_version": "1", "region_name": "images"}
    body: Any = copy.deepcopy(case.body)  # cases share what they are made of
    if case.media_type == "application/octet-stream":
        case.body = SOUND
        return True
    if not isinstance(body, dict):
        return bool(case.path_parameters)
    if case.media_type == "multipart/form-data" and isinstance(body.get("image"), list):
        body["image"] = [SOUND for _ in body["image"]]
        case.body = body
        return True
    if case.media_type == "application/json":
        images = body.get("images")
        places = images if isinstance(images, list) else [body]
        for place in places:
            if isinstance(place, dict) and isinstance(place.get("image"), str):
                place["image"] = BASE64
        if isinstance(body.get("instances"), list):
            body["instances"] = [{"b64": BASE64} for _ in body["instances"]]
        if isinstance(body.get("inputs"), str):
            body["inputs"] = BASE64
        if isinstance(body.get("inputs"), list):
            body["inputs"] = [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [BASE64]}]
        case.body = body
        return True
    return False


def test_the_document_is_made_once() -> None:
    """Asking for it again costs the other requests nothing."""
    app = create_app(Settings(), FakeDispatch())
    first = app.openapi()
    schemas = dict(first["components"]["schemas"])
    assert app.openapi() is first
    assert all(app.openapi()["components"]["schemas"][name] is schema for name, schema in schemas.items())


def test_every_route_is_in_the_document() -> None:
    """What clients and operators call is published, and nothing else is."""
    assert {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods} == {
        ("/v1/classify", "post"),
        ("/v1/embed", "post"),
        ("/invocations", "post"),
        ("/v1/models", "get"),
        ("/v1/models/{model_name}", "get"),
        ("/v1/models/{model_name}:predict", "post"),
        ("/v1/stats", "get"),
        ("/v2", "get"),
        ("/v2/health/live", "get"),
        ("/v2/health/ready", "get"),
        ("/v2/models/{model_name}", "get"),
        ("/v2/models/{model_name}/ready", "get"),
        ("/v2/models/{model_name}/config", "get"),
        ("/v2/models/{model_name}/infer", "post"),
        ("/v2/models/{model_name}/versions/{model_version}", "get"),
        ("/v2/models/{model_name}/versions/{model_version}/ready", "get"),
        ("/v2/models/{model_name}/versions/{model_version}/config", "get"),
        ("/v2/models/{model_name}/versions/{model_version}/infer", "post"),
        ("/v2/models/stats", "get"),
        ("/v2/systemsharedmemory/status", "get"),
        ("/v2/systemsharedmemory/unregister", "post"),
        ("/v2/systemsharedmemory/region/{region_name}/status", "get"),
        ("/v2/systemsharedmemory/region/{region_name}/register", "post"),
        ("/v2/systemsharedmemory/region/{region_name}/unregister", "post"),
        ("/v2/cudasharedmemory/status", "get"),
        ("/v2/cudasharedmemory/unregister", "post"),
        ("/v2/models/{model_name}/stats", "get"),
        ("/v2/models/{model_name}/versions/{model_version}/stats", "get"),
        ("/", "get"),
        ("/", "post"),
        ("/models/{model_name}", "post"),
        ("/livez", "get"),
        ("/readyz", "get"),
        ("/ping", "get"),
        ("/metrics", "get"),
    }


@pytest.mark.parametrize("status", ["400", "413", "415", "422", "429", "503", "504"])
def test_every_error_of_classify_is_declared_as_a_problem(status: str) -> None:
    """Each status has its meaning in words and the problem document as its schema."""
    declared = DOCUMENT["paths"]["/v1/classify"]["post"]["responses"][status]
    assert declared["description"]
    reference = declared["content"]["application/problem+json"]["schema"]
    assert reference == {"$ref": "#/components/schemas/ProblemDocument"}
    schema = DOCUMENT["components"]["schemas"]["ProblemDocument"]
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
        for schema in parameter["schema"].get("oneOf", [parameter["schema"]]):
            assert schema["type"] in ("number", "integer", "string", "boolean")
    ratio, auto = parameters["keep_ratio"]["schema"]["oneOf"]
    assert (ratio["exclusiveMinimum"], ratio["maximum"]) == (0, 1)
    assert auto["const"] == "auto"
    for share in ("min_keep_ratio", "compute", "keep_mass"):
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


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/models/{model_name}",
        "/v1/models/{model_name}:predict",
        "/v2/models/{model_name}/infer",
    ],
)
def test_errors_of_clients_that_others_wrote_are_declared_in_their_shape(path: str) -> None:
    """Every status of /v1/classify, but that of errors=each only of KServe's instances; and 404 where the
    path names a model."""
    responses = DOCUMENT["paths"][path]["post"]["responses"]
    of_classify = set(DOCUMENT["paths"]["/v1/classify"]["post"]["responses"])
    others = of_classify if path.endswith(":predict") else of_classify - {"207"}
    assert set(responses) == others | ({"404"} if "{" in path else set())
    for status, declared in responses.items():
        if status not in ("200", "207"):
            schema = declared["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}
            assert ("Retry-After" in declared["headers"]) == (status in ("429", "503"))


# What a generator of clients needs.


def _operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_operation_has_a_name_fit_for_a_method_and_says_what_it_does() -> None:
    """Each once, and none with the path in it."""
    names = [operation["operationId"] for _, _, operation in _operations()]
    assert len(set(names)) == len(names)
    for path, method, operation in _operations():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", operation["operationId"]), path
        assert not operation["operationId"].endswith(f"_{method}"), path
        assert operation["summary"], path
        assert operation["tags"], path


def _described(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, member in schema.get("properties", {}).items():
        yield name, member
        for inner, below in _described(member):
            yield f"{name}.{inner}", below


def test_every_member_and_parameter_is_described() -> None:
    """A schema of its own says it at its head; all else says it where it stands."""
    for title, schema in DOCUMENT["components"]["schemas"].items():
        assert schema.get("description"), title
        for name, member in _described(schema):
            assert member.get("description") or "$ref" in member, f"{title}.{name}"
    for path, _, operation in _operations():
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), f"{path} {parameter['name']}"
        for content in operation.get("requestBody", {}).get("content", {}).values():
            for name, member in _described(content["schema"]):
                assert member.get("description"), f"{path} {name}"


def test_every_reference_leads_somewhere() -> None:
    """And nothing is declared that nothing refers to, nor what is never sent."""
    text = str(DOCUMENT)
    referred = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert referred == set(DOCUMENT["components"]["schemas"])
    assert "HTTPValidationError" not in text


def _json_bodies(operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schemas that a JSON body may have."""
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    for choice in schema.get("oneOf", [schema]):
        if "$ref" in choice:
            yield DOCUMENT["components"]["schemas"][choice["$ref"].rpartition("/")[2]]


def _example(schema: dict[str, Any]) -> Any:
    """The example of a schema: its own, or that of each required or exemplified member."""
    if "$ref" in schema:
        return _example(DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "examples" in schema:
        return schema["examples"][0]
    if schema.get("type") == "array":
        return [_example(schema["items"])]
    return {
        name: _example(member)
        for name, member in schema["properties"].items()
        if name in schema.get("required", []) or "examples" in member or name == "data"
    }


EXAMPLES = [
    (path, example)
    for path, method, operation in _operations()
    # No client's shared memory is there to be registered.
    if method == "post" and "sharedmemory" not in path
    for schema in _json_bodies(operation)
    for example in (schema.get("examples") or [_example(schema)])
]


@pytest.mark.parametrize(("path", "example"), EXAMPLES, ids=[path for path, _ in EXAMPLES])
def test_every_example_of_a_body_works(path: str, example: dict[str, Any]) -> None:
    """Sent as it stands, it is answered."""
    with TestClient(create_app(Settings(), FakeDispatch())) as client:
        response = client.post(path.format(model_name=MODEL.name, model_version="1"), json=example)
    assert response.status_code == 200, response.text


def test_every_body_in_json_has_an_example() -> None:
    """Two where there are two forms, and one of each other route that takes images."""
    assert sorted(path for path, _ in EXAMPLES) == [
        "/",
        "/invocations",
        "/invocations",
        "/models/{model_name}",
        "/v1/classify",
        "/v1/classify",
        "/v1/embed",
        "/v1/embed",
        "/v1/models/{model_name}:predict",
        "/v1/models/{model_name}:predict",
        "/v2/models/{model_name}/infer",
        "/v2/models/{model_name}/versions/{model_version}/infer",
    ]


@pytest.mark.parametrize(
    ("path", "options", "name"),
    [
        (path, options, name)
        for path, options in (("/v1/classify", ImageOptions), ("/v1/embed", EmbedOptions))
        for name in options.model_fields
    ],
)
def test_every_example_of_an_option_works(path: str, options: type[ImageOptions], name: str) -> None:
    """By itself; null stands for an option that the others exclude."""
    for example in options.model_json_schema()["properties"][name].get("examples", []):
        with TestClient(create_app(Settings(), FakeDispatch())) as client:
            response = client.post(path, json={"image": BASE64, name: example})
        assert response.status_code == 200, response.text
