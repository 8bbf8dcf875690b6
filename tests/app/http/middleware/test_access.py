"""Who may ask: keys by path, CORS, and what browsers are told."""

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import Request
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from app.http.paths import is_public
from app.main import create_app
from app.settings.settings import Settings
from tests.app.fakes import FakeDispatch, encoded
from tests.app.http.problem import assert_problem

ALICE, BOB = "alice-0123456789", "bob-0123456789ab"
MakeClient = Callable[..., TestClient]


@pytest.fixture
def locked(make_client: MakeClient, tmp_path: Path) -> TestClient:
    """A client of a server that asks for keys; it has a further route that tells who asked."""
    path = tmp_path / "keys"
    path.write_text(f"alice:{ALICE}\nbob:{BOB}\n")
    client = make_client(api_keys_file=path)

    @client.app.get("/added/later")  # type: ignore[attr-defined]
    async def later(request: Request) -> dict[str, object]:
        return {"caller": getattr(request.state, "caller", None)}

    return client


@pytest.mark.parametrize(
    ("headers", "caller"),
    [
        ({"Authorization": f"Bearer {ALICE}"}, "alice"),
        ({"Authorization": f"bearer  {BOB}"}, "bob"),
        ({"X-API-Key": BOB}, "bob"),
        ({"Authorization": "Basic YTpi", "X-API-Key": ALICE}, "alice"),
        ({"Authorization": f"Bearer {ALICE}", "X-API-Key": BOB}, "alice"),
    ],
)
def test_a_valid_key_lets_through_and_names_the_caller(
    locked: TestClient, headers: dict[str, str], caller: str
) -> None:
    """In either header; routes find the caller's name in request.state."""
    assert locked.post("/v1/classify", content=encoded(), headers=headers).status_code == 200
    assert locked.get("/added/later", headers=headers).json() == {"caller": caller}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/classify"),
        ("POST", "/"),
        ("POST", "/models/toy"),
        ("POST", "/v2/models/toy/infer"),
        ("GET", "/v2/models/toy"),
        ("POST", "/livez"),
        ("GET", "/v1/stats"),
        ("GET", "/v1/models"),
        ("GET", "/added/later"),
        ("GET", "/v2"),
        ("GET", "/nothing/here"),
        ("GET", "//livez"),
        ("GET", "/livez/"),
        ("GET", "/LIVEZ"),
        ("GET", "/static"),
    ],
)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ALICE},
        {"Authorization": f"Basic {ALICE}"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {ALICE}x"},
        {"X-API-Key": ""},
        {"X-API-Key": f"Bearer {ALICE}"},
        {"Authorization": "Bearer wrong", "X-API-Key": ALICE},
    ],
    ids=str,
)
def test_without_a_valid_key_all_that_is_not_open_is_401(
    locked: TestClient, dispatch: FakeDispatch, method: str, path: str, headers: dict[str, str]
) -> None:
    """Also what other modules add, and what is not there; the body is not looked at."""
    # As bytes, for httpx would tidy the path up.
    url = locked.base_url.copy_with(raw_path=path.encode())
    response = locked.request(method, url, headers=headers)
    if path == "/" or path.startswith(("/v2", "/models")):  # clients that others wrote
        assert response.status_code == 401
        detail = response.json()["error"]
    else:
        detail = assert_problem(response, 401, "unauthorized").detail
    assert response.headers["WWW-Authenticate"].startswith('Bearer realm="trimvit"')
    presented = "error=" in response.headers["WWW-Authenticate"]
    assert presented == ("not valid" in detail)
    assert ALICE not in response.text
    assert dispatch.questions == []


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/livez",
        "/readyz",
        "/ping",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/v2/health/live",
        "/v2/health/ready",
    ],
)
@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "wrong"}], ids=str)
def test_probes_metrics_and_pages_ask_for_no_key(
    locked: TestClient, path: str, headers: dict[str, str]
) -> None:
    """Orchestrators and Prometheus have none; the pages hold nothing of anyone's."""
    assert locked.get(path, headers=headers).status_code == 200


def test_the_scripts_of_the_pages_ask_for_no_key(locked: TestClient) -> None:
    """/ and /docs work in a browser, which sends no key for their files."""
    for page in ("/", "/docs"):
        for loaded in re.findall(r'(?:src|href)="([^"]+\.(?:js|css|svg|png))"', locked.get(page).text):
            assert locked.get(loaded).status_code == 200, loaded


@pytest.mark.parametrize(
    "path", ["/static/../v1/models", "/static/%2e%2e/v1/models", "/static-offline-docs/../v1/models"]
)
def test_an_open_folder_is_no_way_round(locked: TestClient, path: str) -> None:
    """Dots in a path lead nowhere."""
    response = locked.get(locked.base_url.copy_with(raw_path=path.encode()))
    assert response.status_code in (401, 404)


def test_a_websocket_without_a_key_is_closed(locked: TestClient) -> None:
    """There is none yet; one that is added is closed as well."""
    with pytest.raises(WebSocketDisconnect) as caught, locked.websocket_connect("/added/socket"):
        pass
    assert caught.value.code == 1008


def test_no_key_is_asked_for_where_none_is_set(client: TestClient) -> None:
    """And nobody is named, whatever is sent."""

    @client.app.get("/added/later")  # type: ignore[attr-defined]
    async def later(request: Request) -> dict[str, object]:
        return {"caller": getattr(request.state, "caller", None)}

    assert client.get("/added/later", headers={"X-API-Key": ALICE}).json() == {"caller": None}


def test_the_document_declares_the_keys(locked: TestClient) -> None:
    """Both headers, on closed paths only, with their 401; clients are made from it."""
    document = locked.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert document["components"]["securitySchemes"]["key"]["name"] == "X-API-Key"
    assert document["security"] == [{"bearer": []}, {"key": []}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            opened = is_public(method.upper(), path)
            assert (operation.get("security") == []) == opened, path
            assert ("401" in operation["responses"]) == (not opened), path
    assert "401" in document["paths"]["/"]["post"]["responses"]
    (content,) = document["paths"]["/v2/models/{model_name}/infer"]["post"]["responses"]["401"][
        "content"
    ].values()
    assert "ErrorAnswer" in str(content), "in the shape that this route's clients know"
    assert "/added/later" in document["paths"], "whoever adds a route"


def test_without_keys_the_document_declares_none(client: TestClient) -> None:
    """It is true of this server."""
    document = client.get("/openapi.json").json()
    assert "security" not in document
    assert "securitySchemes" not in document["components"]


@pytest.mark.parametrize(
    ("headers", "query", "words"),
    [
        ({}, "", "'Authorization: Bearer KEY' or 'X-API-Key: KEY'"),
        ({}, f"?api_key={ALICE}", "a key in the query is ignored"),
        ({}, f"?keep_ratio=0.5&Key={ALICE}", "a key in the query is ignored"),
        ({"Authorization": "Basic YTpi"}, "", "not 'basic'"),
        ({"Authorization": f"ApiKey {ALICE}"}, "", "not 'apikey'"),
        ({"Authorization": f"Token {ALICE}"}, "", "not 'token'"),
        ({"Authorization": ALICE}, "", "write Bearer before the key"),
        ({"Authorization": "Bearer"}, "", "send 'Authorization: Bearer KEY'"),
        ({"Authorization": "Bearer   "}, "", "send 'Authorization: Bearer KEY'"),
        ({"Authorization": f"Bearer Bearer {ALICE}"}, "", "send 'Authorization: Bearer KEY'"),
        ({"Authorization": f'Bearer "{ALICE}"'}, "", "without quotation marks"),
        ({"X-API-Key": f"'{ALICE}'"}, "", "without quotation marks"),
        ({"X-API-Key": f"{ALICE}x"}, "", "not valid any longer"),
    ],
    ids=str,
)
def test_a_refusal_says_what_is_wrong_with_the_key(
    locked: TestClient, headers: dict[str, str], query: str, words: str
) -> None:
    """Or with its place; and repeats no key."""
    response = locked.post(f"/v1/classify{query}", content=encoded(), headers=headers)
    assert_problem(response, 401, "unauthorized", words)  # type: ignore[arg-type]
    assert ALICE not in response.text


# Another listener for operations.


def test_metrics_move_to_the_operations_listener(make_client: MakeClient) -> None:
    """With a port of its own the main one has no /metrics; probes stay on both."""
    client = make_client(operations_port=0)
    assert client.get("/metrics").status_code == 404
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 200
    assert "/metrics" not in client.get("/openapi.json").json()["paths"]


# Browsers.


def test_cors_is_off_by_default(client: TestClient) -> None:
    """Another origin's page may not read an answer, nor send what needs a preflight."""
    response = client.get("/v1/models", headers={"Origin": "https://example.org"})
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("access-control-")]
    preflight = client.options("/v1/classify", headers=_preflight("https://example.org"))
    assert preflight.status_code == 405
    assert not [name for name in preflight.headers if name.startswith("access-control-")]


def _preflight(origin: str) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-api-key, x-request-id",
    }


def test_named_origins_may_call(make_client: MakeClient, tmp_path: Path) -> None:
    """Those and no other, with a key in either header; a preflight, which has none, is answered."""
    (tmp_path / "keys").write_text(f"alice:{ALICE}")
    client = make_client(
        cors_origins=("https://example.org", "http://localhost:3000"), api_keys_file=tmp_path / "keys"
    )
    for origin in ("https://example.org", "http://localhost:3000"):
        preflight = client.options("/v1/classify", headers=_preflight(origin))
        assert preflight.status_code == 200
        assert preflight.headers["Access-Control-Allow-Origin"] == origin
        response = client.get("/v1/models", headers={"Origin": origin, "X-API-Key": ALICE})
        assert response.headers["Access-Control-Allow-Origin"] == origin
        assert "Server-Timing" in response.headers["Access-Control-Expose-Headers"]
        refused = client.get("/v1/models", headers={"Origin": origin})
        assert refused.status_code == 401
        assert refused.headers["Access-Control-Allow-Origin"] == origin, "the page may read why"
    for origin in ("https://example.com", "https://sub.example.org", "http://example.org", "null"):
        assert (
            "Access-Control-Allow-Origin"
            not in client.options("/v1/classify", headers=_preflight(origin)).headers
        )
        response = client.get("/v1/models", headers={"Origin": origin, "X-API-Key": ALICE})
        assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize(
    "names",
    [
        "content-type,inference-header-content-length",
        "content-encoding,content-type",
        "traceparent,tracestate",
    ],
    ids=["binary tensors", "a compressed body", "tracing in the browser"],
)
def test_pages_may_send_every_header_that_is_read(make_client: MakeClient, names: str) -> None:
    """Browsers do not send a request at all with a header that its preflight was refused."""
    client = make_client(cors_origins=("https://example.org",))
    asks = {**_preflight("https://example.org"), "Access-Control-Request-Headers": names}
    assert client.options("/v2/models/toy/infer", headers=asks).status_code == 200


def test_pages_may_read_every_header_that_says_something_of_an_answer(make_client: MakeClient) -> None:
    """Without the length of its JSON, a page cannot read an answer of binary tensors."""
    client = make_client(cors_origins=("https://example.org",), answer_cache_bytes=1_000_000)
    document = {
        "inputs": [
            {
                "name": "image",
                "shape": [1],
                "datatype": "BYTES",
                "data": [base64.b64encode(encoded()).decode()],
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    response = client.post("/v2/models/toy/infer", json=document, headers={"Origin": "https://example.org"})
    shown = {name.strip().casefold() for name in response.headers["Access-Control-Expose-Headers"].split(",")}
    own = {"inference-header-content-length", "cache-status", "server-timing", "x-request-id"}
    assert own <= set(response.headers)
    assert own <= shown


@pytest.mark.parametrize(
    "path", ["/livez", "/v1/models", "/docs", "/nothing", "/static-offline-docs/swagger-ui.css"]
)
def test_browsers_are_told_not_to_guess(client: TestClient, path: str) -> None:
    """Every answer is only what its Content-Type says."""
    response = client.get(path)
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"


def test_an_unforeseen_fault_has_the_headers_too(client: TestClient) -> None:
    """They surround everything."""

    @client.app.get("/breaks")  # type: ignore[attr-defined]
    async def breaks() -> None:
        raise ZeroDivisionError

    response = client.get("/breaks")
    assert response.status_code == 500
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_a_page_may_load_only_what_is_the_servers_own() -> None:
    """A page that any module adds gets the strict policy, without inline scripts or styles."""
    from fastapi.responses import HTMLResponse

    app = create_app(Settings(), FakeDispatch())

    @app.get("/page")
    async def page() -> HTMLResponse:
        return HTMLResponse("<script>alert(1)</script>")

    policy = TestClient(app).get("/page").headers["Content-Security-Policy"]
    assert "default-src 'self';" in policy
    assert "img-src 'self' data: blob:;" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "sha256" not in policy


def test_the_docs_page_may_run_its_own_script(client: TestClient) -> None:
    """Swagger UI's start is allowed by its hash; no other inline script is."""
    response = client.get("/docs")
    policy = response.headers["Content-Security-Policy"]
    inline = re.findall(r"<script>(.*?)</script>", response.text, re.DOTALL)
    assert len(inline) == 1
    allowed = base64.b64encode(hashlib.sha256(inline[0].encode()).digest()).decode()
    assert f"script-src 'self' 'sha256-{allowed}';" in policy
    assert "default-src 'self';" in policy
