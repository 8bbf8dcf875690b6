"""What pages of other sites may send."""

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from app.http.middleware.sites import is_own
from tests.app.fakes import FakeDispatch, encoded
from tests.app.http.problem import assert_problem

MakeClient = Callable[..., TestClient]
OWN = "http://testserver"
CROSS, NAMED = "https://evil.test", "https://friend.test"


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": CROSS},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://testserver:3000"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "null"},
        {"Sec-Fetch-Site": "something new"},
        {"Sec-Fetch-Site": "cross-site", "Origin": OWN},
        {"Origin": CROSS},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://testserver.evil.test"},
        {"Origin": "http://testserver:3000"},
        {"Origin": CROSS, "Host": "testserver", "Forwarded": "host=evil.test"},
    ],
    ids=str,
)
def test_what_another_sites_page_sends_is_refused(
    client: TestClient, dispatch: FakeDispatch, headers: dict[str, str]
) -> None:
    """A form, or what a browser sends without leave; the words name the setting."""
    response = client.post("/v1/classify", content=encoded(), headers=headers)
    assert_problem(response, 403, "cross-site-request", "--cors-origins")  # type: ignore[arg-type]
    form = client.post("/", files={"image": encoded()}, headers=headers)
    assert form.status_code == 403
    assert "--cors-origins" in form.json()["error"]
    assert dispatch.questions == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin", "Origin": OWN},
        {"Sec-Fetch-Site": "same-origin", "Origin": "null"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": OWN},
        {"Origin": "http://testserver:80"},
        {"Origin": "https://testserver"},
        {"Origin": "https://public.test", "X-Forwarded-Host": "public.test"},
        {"Origin": "http://[::1]:8000", "Host": "[::1]:8000"},
    ],
    ids=str,
)
def test_the_servers_own_page_and_programs_are_answered(client: TestClient, headers: dict[str, str]) -> None:
    """Programs say nothing of a site; behind a proxy the public name is the server's own."""
    assert client.post("/v1/classify", content=encoded(), headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/livez", "/v1/models"])
def test_links_from_other_sites_are_followed(client: TestClient, path: str) -> None:
    """Reading changes nothing, and what comes of it no other page can see."""
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Origin": CROSS}
    assert client.get(path, headers=headers).status_code == 200


def test_named_origins_may_send(make_client: MakeClient) -> None:
    """Those that --cors-origins names, also from a public site to a private address; no other."""
    client = make_client(cors_origins=(NAMED,))
    for headers in ({"Sec-Fetch-Site": "cross-site", "Origin": NAMED}, {"Origin": NAMED.upper()}):
        assert client.post("/v1/classify", content=encoded(), headers=headers).status_code == 200
    refused = client.post("/v1/classify", content=encoded(), headers={"Origin": CROSS})
    assert refused.status_code == 403
    preflight = client.options(
        "/v1/classify",
        headers={
            "Origin": NAMED,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Private-Network": "true",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Private-Network"] == "true"


@pytest.mark.parametrize(
    ("origin", "hosts", "own"),
    [
        ("http://here:8000", ["HERE:8000"], True),
        ("http://here:8000", ["here:80"], False),
        ("http://here", ["here:80"], True),
        ("https://here", ["here:443"], True),
        ("https://here", ["here:80"], False),
        ("http://here", [], False),
        ("here", ["here"], False),
        ("http://", [""], False),
        ("http://a", ["b", "a"], True),
    ],
)
def test_an_origin_is_own_where_its_host_was_asked(origin: str, hosts: list[str], own: bool) -> None:
    """Ports count, schemes do not."""
    assert is_own(origin, hosts) == own
