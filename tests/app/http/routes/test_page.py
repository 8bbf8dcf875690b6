"""GET /: the page and its files."""

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser

import pytest
from starlette.testclient import TestClient

from app.http.routes.page import FOLDER, static_files
from tests.app.http.problem import assert_problem

LARGEST_EXAMPLE_BYTES = 150_000


class _Elements(HTMLParser):
    """Every start tag with its attributes, and all text between script or style tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.inline = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id" and value]

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] in ("script", "style"):
            self.inline += data.strip()

    def loaded(self) -> Iterator[str]:
        """What a browser loads for the page by itself."""
        for tag, attributes in self.found:
            if tag == "link":
                yield attributes["href"] or ""
            elif attributes.get("src"):
                yield attributes["src"] or ""


def test_the_page_is_html_that_browsers_ask_for_again(client: TestClient) -> None:
    """A page kept from yesterday would name files that are gone; asking again costs a 304."""
    response = client.get("/")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache"
    assert "default-src 'self';" in response.headers["Content-Security-Policy"]
    assert "{{" not in response.text
    again = client.get("/", headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/", headers={"If-None-Match": "*"}).status_code == 304, "RFC 9110, 13.1.2"
    assert client.get("/", headers={"If-None-Match": '"another"'}).status_code == 200
    assert client.head("/").status_code == 200


def test_the_page_knows_the_largest_body(make_client: Callable[..., TestClient]) -> None:
    """So that it can refuse a file in words before it is sent."""
    assert 'data-max-body-bytes="12345"' in make_client(max_body_bytes=12345).get("/").text


def test_nothing_written_into_the_page_runs_or_styles(client: TestClient) -> None:
    """No inline script, style or handler: the Content-Security-Policy needs no exception."""
    elements = _Elements(client.get("/").text)
    assert elements.inline == ""
    for tag, attributes in elements.found:
        assert tag != "style"
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "script" or "src" in attributes
    assert len(elements.ids) == len(set(elements.ids))


def test_every_file_of_the_page_may_be_kept_for_ever(client: TestClient) -> None:
    """What the page loads is there, under a path that changes with the files, with its type and an ETag."""
    loaded = list(_Elements(client.get("/").text).loaded())
    assert len(loaded) > 5
    for path in loaded:
        assert re.fullmatch(r"static/[0-9a-f]{16}/[\w./-]+", path), path
        response = client.get(f"/{path}")
        assert response.status_code == 200, path
        assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert client.get(f"/{path}", headers={"If-None-Match": response.headers["ETag"]}).status_code == 304
    of_a_page_from_elsewhere = client.get("/static/0123456789abcdef/page.js")
    assert of_a_page_from_elsewhere.status_code == 200
    assert of_a_page_from_elsewhere.headers["Cache-Control"] == "no-cache"


def test_modules_import_modules_that_are_there() -> None:
    """A misspelt import would leave the page dead."""
    files = static_files(FOLDER)
    imports = {
        (name, imported)
        for name, file in files.items()
        if name.endswith(".js")
        for imported in re.findall(r'^import .* from "\./([\w.]+)";$', file.content.decode(), re.MULTILINE)
    }
    assert len(imports) > 5
    for name, imported in imports:
        assert imported in files, f"{name} imports {imported}"


def test_every_element_that_a_script_names_is_on_the_page(client: TestClient) -> None:
    """byId and say find what they name."""
    page = _Elements(client.get("/").text)
    scripts = "".join(path.read_text() for path in FOLDER.glob("*.js"))
    named = set(re.findall(r'(?:byId|say|fillSelect)\(\s*"([\w-]+)"', scripts))
    assert len(named) > 30
    assert named <= set(page.ids)


@pytest.mark.parametrize("path", ["page.html", "nothing.js", "../main.py", "..%2Fmain.py", "/etc/passwd", ""])
def test_other_paths_are_refused(client: TestClient, path: str) -> None:
    """Only the files of the page are there: the page itself is at /, and nothing outside its folder."""
    assert_problem(client.get(f"/static/x/{path}"), 404, "not-found", "no ")  # type: ignore[arg-type]


def test_examples_are_small() -> None:
    """Nobody waits for a thumbnail."""
    examples = list((FOLDER / "examples").glob("*.jpg"))
    assert len(examples) == 4
    for path in examples:
        assert path.stat().st_size < LARGEST_EXAMPLE_BYTES, path.name
