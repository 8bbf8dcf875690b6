"""The page in a real browser, against a real server with the bundled model."""

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.system.photographs import SHIPPED
from tests.system.server import Server

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed (Debian package chromium)"
)

WAIT_MS = 60_000  # an upper bound on an event; the machine may be busy
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
CLASSIFY = re.compile("/v1/classify")
POLICY = "default-src 'self'; img-src 'self' data: blob:"


@dataclass
class Visit:
    """A page that was opened, and what the browser said and asked meanwhile."""

    page: Any
    url: str
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def see(self, selector: str) -> Any:
        return self.page.locator(selector)

    def says(self, selector: str, text: str | re.Pattern[str]) -> None:
        """Wait until the element's text is so, or holds it."""
        playwright.expect(self.see(selector)).to_contain_text(text)

    def shows(self, selector: str) -> None:
        playwright.expect(self.see(selector)).to_be_visible()

    def hides(self, selector: str) -> None:
        playwright.expect(self.see(selector)).to_be_hidden()

    def choose(self, name: str, content: bytes, media_type: str) -> None:
        """Choose a file, as in the browser's dialog."""
        self.see("#file").set_input_files({"name": name, "mimeType": media_type, "buffer": content})

    def example(self, name: str) -> None:
        """Click an example and wait for its answer."""
        self.see(f"[data-example='{name}']").click()
        self.answered()

    def answered(self) -> None:
        """Wait until nothing is being asked and there is an answer."""
        playwright.expect(self.see("#answer")).to_have_attribute("aria-busy", "false")
        self.shows("#answer")

    def set_value(self, value: float) -> None:
        """Move the slider."""
        self.see("#value").fill(str(value))

    def pixels(self, selector: str) -> np.ndarray:
        """A canvas's picture."""
        shown = self.see(selector).evaluate("canvas => canvas.toDataURL('image/png')")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.split(",")[1]))).convert("RGB"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        playwright.expect.set_options(timeout=WAIT_MS)
        running = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Callable[..., Visit]]:
    """Opens the page; see `visiting`."""
    with visiting(browser, server) as opened:
        yield opened


@pytest.fixture
def visit_both(browser: Any, both: Server) -> Iterator[Callable[..., Visit]]:
    """Opens the page of a server with two models."""
    with visiting(browser, both) as opened:
        yield opened


@contextmanager
def visiting(browser: Any, server: Server) -> Iterator[Callable[..., Visit]]:
    """What opens the page, in a browser that remembers nothing. Whatever the test does, the page must ask no
    other host and the browser must have nothing to say against it."""
    visits: list[Visit] = []
    contexts: list[Any] = []

    def opened(**context: Any) -> Visit:
        settings = {"viewport": DESK, "reduced_motion": "reduce", **context}
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT_MS)
        came = Visit(page, server.url)
        page.on("request", lambda request: came.asked.append(request.url))
        page.on("pageerror", lambda error: came.complaints.append(str(error)))
        page.on(
            "console",
            # That a request failed, Chromium says by itself; all else would be ours.
            lambda line: line.text.startswith("Failed to load resource") or came.complaints.append(line.text),
        )
        page.route(re.compile(rf"^{re.escape(server.url)}/(\?.*)?$"), _strictly)
        page.goto(f"{server.url}/")
        came.shows("#knows")
        visits.append(came)
        return came

    yield opened
    for context in contexts:
        context.close()
    for came in visits:
        assert came.complaints == []
        assert [url for url in came.asked if not url.startswith((f"{server.url}/", "blob:", "data:"))] == []


def _strictly(route: Any) -> None:
    """The page under the strictest policy that it is to work with."""
    response = route.fetch()
    route.fulfill(response=response, headers={**response.headers, "content-security-policy": POLICY})


Open = Callable[..., Visit]


def classified(server: Server, photograph: bytes, **options: object) -> dict[str, Any]:
    """What the server itself says of a photograph."""
    response = httpx.post(f"{server.url}/v1/classify", params=options, content=photograph)  # type: ignore[arg-type]
    result: dict[str, Any] = response.raise_for_status().json()["results"][0]
    return result


def example(server: Server, visit: Visit, name: str) -> bytes:
    source = visit.see(f"[data-example='{name}'] img").get_attribute("src")
    return httpx.get(f"{server.url}/{source}").raise_for_status().content


def test_the_whole_way(visit: Open, server: Server, tmp_path: Path) -> None:
    """A photograph, its answer as the server gives it, another ratio, comparison, command and figures."""
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    page.says("#knows", "109 labels")
    page.says("#knows", "garbage truck")
    page.hides("#answer")
    page.example("china.jpg")
    photograph = example(server, page, "china.jpg")
    expected = classified(server, photograph, keep_ratio=0.5)
    assert expected["labels"][0]["label"] == "church"
    page.says("#label", "church")
    page.says("#score", f"{expected['labels'][0]['score'] * 100:.0f}")
    assert page.see("#labels .name").all_text_contents() == [label["label"] for label in expected["labels"]]
    page.says("#saved", f"{(1 - expected['compute']) * 100:.0f}")
    page.says("#left", "32 of 256")
    assert page.see("#stages small").all_text_contents() == ["256", "128", "64", "32"]
    for phase in ("decode", "queue", "compute", "the rest"):
        page.says("#phases", phase)
    page.says("#status", "church")

    page.set_value(0.3)
    page.says("#left", "8 of 256")
    page.says("#value-shown", "0.30")
    page.see("#criterion").select_option("mad")
    page.says("#curl", "criterion=mad")
    page.see("#copy").click()
    page.says("#copy", "Copied")
    command = page.page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=tmp_path, capture_output=True, check=True, timeout=60
    )
    result = json.loads(done.stdout)["results"][0]
    assert (result["keep_ratio"], result["criterion"]) == (0.3, "mad")
    assert [label["label"] for label in result["labels"]] == page.see("#labels .name").all_text_contents()

    page.see("#compare").click()
    page.says("#compare", "Compare again")
    assert page.see("#cards .ratio").all_text_contents() == ["1", "0.9", "0.7", "0.5", "0.3"]
    for place, ratio in enumerate((1, 0.9, 0.7, 0.5, 0.3)):
        result = classified(server, photograph, keep_ratio=ratio, criterion="mad")
        text = page.see("#cards li").nth(place).inner_text()
        assert result["labels"][0]["label"] in text
        assert f"{result['compute'] * 100:.0f}" in text
    page.see("#cards button").nth(2).click()
    page.says("#value-shown", "0.70")
    page.says(
        "#left", f"{classified(server, photograph, keep_ratio=0.7, criterion='mad')['patches']['kept']} of"
    )

    page.says("#now-state", "One worker ready.")
    page.says("#now-answered", re.compile("[1-9]"))
    page.says("#now-rate", re.compile(r"\d"))


def test_every_way_to_choose_is_answered(visit: Open) -> None:
    """Compute, importance, the cascade, each criterion, each reducer; nothing that does not go together."""
    page = visit()
    page.example("astronaut.jpg")
    page.see("[value=compute]").check()
    page.says("#remark", "The resulting keep ratio is")
    page.see("[value=keep_mass]").check()
    page.says("#curl", "keep_mass=0.8")
    playwright.expect(page.see("#reducer option[value=merge]")).to_be_disabled()
    page.see("[value=keep_ratio]").check()
    page.see("#reducer").select_option("merge")
    page.says("#curl", "reducer=merge")
    playwright.expect(page.see("#criterion")).to_be_disabled()
    page.see("[value=keep_mass]").check()
    page.says("#curl", "reducer=drop")
    page.see("[value=cascade]").check()
    page.says("#way-meaning", "Calibrated")
    page.says("#remark", "computed again without pruning")
    page.says("#saved", "none")
    page.see("[value=keep_ratio]").check()
    for criterion in page.see("#criterion option").all():
        value = criterion.get_attribute("value")
        page.see("#criterion").select_option(value)
        page.says("#curl", f"criterion={value}&")
    page.hides("#trouble")


@pytest.mark.parametrize("orientation", [1, 6, 3])
def test_the_picture_is_what_the_model_sees(visit: Open, server: Server, orientation: int) -> None:
    """Cropped and turned upright as the server does it, and dimmed where its mask says."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    Image.open(SHIPPED / "china.jpg").resize((480, 320)).save(buffer, "PNG", exif=exif)
    photograph = buffer.getvalue()
    page = visit()
    page.choose("turned.png", photograph, "image/png")
    page.answered()
    grid = classified(server, photograph, keep_ratio=0.5, mask="grid", mask_stages="true")["mask"]
    unpruned = classified(server, photograph, keep_ratio=1, mask="png")["mask"][0]["png"]
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(unpruned))).convert("RGB")).astype(float)
    for stage in range(4):
        page.see(f"#stages [value='{stage}']").check()
        shown = Image.fromarray(page.pixels("#picture")).resize((224, 224), Image.Resampling.BOX)
        kept = np.array(grid[stage - 1]["grid"]) if stage else np.ones((16, 16))
        expected = seen * np.where(np.kron(kept, np.ones((14, 14))) == 1, 1.0, 0.18)[..., None]
        assert np.abs(np.asarray(shown) - expected).mean() < 12
        # Each patch by itself is as bright as its cell says: between dimmed and whole lies a wide gap.
        patches = np.asarray(shown).reshape(16, 14, 16, 14, 3).mean((1, 3, 4))
        whole = seen.reshape(16, 14, 16, 14, 3).mean((1, 3, 4))
        bright = whole > 60
        assert ((patches / np.maximum(whole, 1) > 0.6) == (kept == 1))[bright].all()


def test_stages_play_one_after_the_other(visit: Open) -> None:
    """A new photograph shows its stages by itself, unless the system asks for stillness; and on request."""
    page = visit(reduced_motion="no-preference")
    page.see("[data-example='chelsea.jpg']").click()
    page.says("#play", "Stop")
    page.says("#play", "Play")
    assert page.see("#stages [value='3']").is_checked()
    still = visit(reduced_motion="reduce")
    still.example("chelsea.jpg")
    assert still.see("#play").inner_text() == "Play"
    assert still.see("#stages [value='3']").is_checked()
    still.see("#play").click()
    still.says("#play", "Stop")
    still.see("#stages [value='1']").check()
    still.says("#play", "Play")
    assert still.see("#stages [value='1']").is_checked()
    assert "128 of 256" in (still.see("#picture").get_attribute("aria-label") or "")


def test_a_stale_answer_never_overwrites_a_newer_one(visit: Open) -> None:
    """The first question's answer is held back until the second is shown; then it changes nothing."""
    page = visit()
    page.example("china.jpg")
    held: list[Any] = []
    page.page.route(re.compile(r"keep_ratio=0\.9"), lambda route: held.append(route))
    page.set_value(0.9)
    with page.page.expect_event("requestfailed", lambda request: "keep_ratio=0.9" in request.url):
        playwright.expect(page.see("#answer")).to_have_attribute("aria-busy", "true")
        page.page.wait_for_timeout(300)  # let the slider rest, so that the first question is under way
        assert held
        page.set_value(0.4)
    page.answered()
    page.says("#curl", "keep_ratio=0.4")
    left = page.see("#left").inner_text()
    stale = {"model": "stale", "results": [{"labels": []}], "timings_ms": {}}
    for route in held:
        try:
            route.fulfill(json=stale)
        except playwright.Error:
            continue  # the browser has hung up, as it should
    page.page.wait_for_timeout(300)
    assert page.see("#left").inner_text() == left
    page.says("#curl", "keep_ratio=0.4")


def test_another_photograph_replaces_the_one_under_way(visit: Open) -> None:
    """Two examples clicked quickly: the second one's answer is shown, and its picture."""
    page = visit()
    page.see("[data-example='coffee.jpg']").click()
    # An event, not the mouse: what comes of the first click may move the second button away from under it.
    page.see("[data-example='china.jpg']").dispatch_event("click")
    page.says("#label", "church")
    page.says("#curl", "china.jpg")
    assert "china.jpg" in (page.see("#picture").get_attribute("aria-label") or "")


def test_what_is_not_a_picture_is_said_in_words(visit: Open) -> None:
    """The server's words, and a page that goes on with the next photograph."""
    page = visit()
    page.example("china.jpg")
    page.choose("notes.txt", b"no picture at all", "text/plain")
    page.says("#trouble", "The file is not a complete, valid image")
    page.says("#trouble", "JPEG, PNG")
    page.hides("#answer")
    page.shows("#empty")
    page.example("chelsea.jpg")
    page.hides("#trouble")


def test_what_is_too_large_is_said_without_sending_it(visit: Open, tmp_path: Path) -> None:
    """More than the server takes."""
    large = tmp_path / "large.jpg"
    with large.open("wb") as file:
        file.truncate(2**25 + 1)
    page = visit()
    page.see("#file").set_input_files(large)
    page.says("#trouble", "too large")
    page.says("#trouble", re.compile(r"at most 32\sMiB"))
    assert not [url for url in page.asked if "classify" in url]


def test_a_refusal_with_a_time_to_come_back_is_tried_again(visit: Open) -> None:
    """429 is told, waited out and answered."""
    page = visit()
    problem = {"type": "urn:trimvit:problem:queue-full", "title": "Full", "status": 429, "detail": "full"}
    refused = {"status": 429, "headers": {"Retry-After": "1"}, "json": problem}
    page.page.route(CLASSIFY, lambda route: route.fulfill(**refused), times=1)
    page.see("[data-example='china.jpg']").click()
    page.says("#trouble", "Too many images are waiting.")
    page.says("#trouble", "Trying again in 1 s.")
    page.answered()
    page.hides("#trouble")
    page.says("#label", "church")


def test_a_server_that_is_gone_is_said_so_and_asked_again(visit: Open) -> None:
    """The photograph stays; one click asks again."""
    page = visit()
    page.example("china.jpg")
    page.page.route(re.compile("/v1/"), lambda route: route.abort("connectionrefused"))
    page.set_value(0.8)
    page.says("#trouble", "The server cannot be reached.")
    page.says("#now-state", "The server cannot be reached.")
    page.page.unroute(re.compile("/v1/"))
    page.see("#again").click()
    page.says("#curl", "keep_ratio=0.8")
    page.hides("#trouble")
    page.says("#now-state", "One worker ready.")


def test_a_server_that_asks_for_a_key_is_given_one(visit: Open) -> None:
    """Nothing works without; a wrong key is refused; with the right one everything does, in this tab only."""
    problem = {
        "type": "urn:trimvit:problem:unauthorized",
        "title": "A valid API key is required",
        "status": 401,
        "detail": "this server requires an API key",
    }

    def guarded(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.continue_()
        else:
            route.fulfill(status=401, json=problem)

    page = visit()
    page.page.route(re.compile("/v1/"), guarded)
    page.page.reload()
    page.says("#trouble", "A valid API key is required.")
    page.see("[data-example='china.jpg']").click()
    for key in ("wrong", "right"):
        playwright.expect(page.see("#key")).to_be_visible()
        page.see("#key").fill(key)
        page.see("#key").press("Enter")
    page.says("#label", "church")
    page.hides("#trouble")
    page.says("#curl", "$TRIMVIT_KEY")
    assert "right" not in page.see("#curl").inner_text()
    page.says("#now-state", "One worker ready.")


def test_a_photograph_can_be_dropped_or_pasted(visit: Open) -> None:
    """As files of another window, or from the clipboard."""
    page = visit()
    for kind, name in (("drop", "chelsea.jpg"), ("paste", "china.jpg")):
        content = base64.b64encode((SHIPPED / name).read_bytes()).decode()
        page.page.evaluate(
            """([kind, name, content]) => {
                const bytes = Uint8Array.from(atob(content), (byte) => byte.charCodeAt(0));
                const data = new DataTransfer();
                data.items.add(new File([bytes], name, { type: "image/jpeg" }));
                const given = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
                const event = kind === "drop" ? new DragEvent(kind, given) : new ClipboardEvent(kind, given);
                document.body.dispatchEvent(event);
            }""",
            [kind, name, content],
        )
        page.says("#curl", f"@{name}")
        page.answered()
    page.says("#label", "church")


def test_a_picture_that_the_browser_cannot_show_comes_from_the_server(visit: Open) -> None:
    """Chromium knows no TIFF; the server does, and shows what the model sees."""
    buffer = io.BytesIO()
    Image.open(SHIPPED / "china.jpg").save(buffer, "TIFF")
    page = visit()
    page.choose("scan.tif", buffer.getvalue(), "image/tiff")
    page.says("#label", "church")
    page.shows("#picture")
    assert page.pixels("#picture").std() > 20


def test_the_keyboard_is_enough(visit: Open) -> None:
    """Everything is reached with Tab, shows that it has the focus, and does its work."""
    page = visit()
    keys = page.page.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(60):
            keys.press("Tab")
            focused = page.page.evaluate(
                """() => {
                    const element = document.activeElement;
                    if (element === document.body) return [true, "past the end"];
                    const outlined = (one) => one && getComputedStyle(one).outlineStyle !== "none";
                    const labels = [...(element.labels ?? [])];
                    return [outlined(element) || labels.some(outlined), element.outerHTML.slice(0, 80)];
                }"""
            )
            assert focused[0], f"no sign of the focus on {focused[1]}"
            if page.see(selector).evaluate("element => element === document.activeElement"):
                return
        pytest.fail(f"Tab does not reach {selector}")

    tab_to("#theme")
    keys.press("Enter")
    page.says("#theme", "Theme: light")
    tab_to("#file")
    tab_to("[data-example='china.jpg']")
    keys.press("Enter")
    page.answered()
    tab_to("#ways :checked")
    keys.press("ArrowRight")
    page.says("#value-label", "compute")
    keys.press("ArrowLeft")
    page.says("#value-label", "Kept")
    tab_to("#value")
    keys.press("End")
    page.says("#left", "256 of 256")
    keys.press("ArrowLeft")
    page.says("#curl", "keep_ratio=0.99&")
    tab_to("#criterion")
    tab_to("#compare")
    keys.press("Enter")
    page.says("#compare", "Compare again")
    tab_to("#nearest-examples")
    keys.press("Enter")
    page.says("#nearest-note", "Cosine")
    tab_to("#pictures")
    tab_to("#copy")
    tab_to("#stages :checked")  # round again
    keys.press("ArrowLeft")
    assert page.see("#stages [value='2']").is_checked()


def test_the_model_is_chosen_of_several(visit_both: Open, both: Server) -> None:
    """Its labels, its own defaults, its patches; the address remembers it, and a gone one is passed over."""
    page = visit_both()
    page.shows("#model")
    assert page.see("#model option").all_text_contents() == ["photo", "small"]
    page.example("china.jpg")
    page.says("#left", "32 of 256")
    page.see("#model").select_option("small")
    page.says("#served", "small")
    page.says("#knows", "3 labels")
    page.says("#curl", "model=small&keep_ratio=0.5&")
    page.says("#curl", "reducer=merge")
    photograph = example(both, page, "china.jpg")
    expected = classified(both, photograph, model="small")
    page.says("#left", f"{expected['patches']['kept']} of {expected['patches']['total']}")
    page.says("#label", expected["labels"][0]["label"])
    assert page.page.url == f"{both.url}/?model=small"
    page.page.reload()
    page.says("#knows", "3 labels")
    assert page.see("#model").input_value() == "small"
    page.see("#model").select_option("photo")
    page.says("#knows", "109 labels")
    assert page.page.url == f"{both.url}/"
    page.page.goto(f"{both.url}/?model=nobody")
    page.says("#served", "photo")


def test_with_one_model_there_is_nothing_to_choose(visit: Open) -> None:
    """The default keep ratio of 1 prunes nothing, so the page shows one half."""
    page = visit()
    page.hides("#model-choice")
    page.says("#value-shown", "0.50")


def test_a_model_without_labels_shows_what_it_keeps(visit: Open, server: Server) -> None:
    """It is asked for features, and there is nothing to compare labels of."""

    def headless(route: Any) -> None:
        document = route.fetch().json()
        document["models"][0]["labels"] = []
        route.fulfill(json=document)

    page = visit()
    page.page.route(re.compile("/v1/models"), headless)
    page.page.reload()
    page.says("#knows", "The model has no labels. It computes 384 features")
    page.example("china.jpg")
    page.says("#left", "32 of 256")
    page.says("#curl", "/v1/embed?keep_ratio=0.5")
    page.hides("#verdict")
    page.hides("#comparison")


def test_an_answer_from_the_cache_is_said_to_be(visit: Open) -> None:
    """Else its times, of which most are 0, look wrong."""

    def cached(route: Any) -> None:
        document = route.fetch().json()
        document["results"][0]["cached"] = True
        route.fulfill(json=document)

    page = visit()
    page.example("china.jpg")
    assert "cache" not in page.see("#remark").inner_text()
    page.page.route(CLASSIFY, cached)
    page.set_value(0.6)
    page.says("#remark", "This answer is from the server's cache")


def test_pictures_are_ordered_by_how_alike_they_are(visit: Open, server: Server) -> None:
    """As the server's features say; too few and too many pictures are told of, and so is what is none."""
    page = visit()
    names = ["china.jpg", "chelsea.jpg", "coffee.jpg"]
    files = [
        {"name": name, "mimeType": "image/jpeg", "buffer": example(server, page, name)} for name in names
    ]
    page.see("#pictures").set_input_files(files)
    page.says("#nearest-note", "384 features, at keep ratio 0.5")
    vectors = []
    for file in files:
        options = {"keep_ratio": "0.5", "normalize": "true"}
        answer = httpx.post(f"{server.url}/v1/embed", params=options, content=file["buffer"])
        vectors.append(answer.raise_for_status().json()["results"][0]["embedding"])
    cosines = np.array(vectors) @ np.array(vectors).T
    for own, row in enumerate(page.see("#neighbours > li").all()):
        expected = sorted({0, 1, 2} - {own}, key=lambda other: -cosines[own, other])
        shown = [each.get_attribute("aria-label") for each in row.locator(".others canvas").all()]
        assert shown == [names[other] for other in expected]
        said = [float(text) for text in row.locator(".others span").all_text_contents()]
        assert said == pytest.approx(cosines[own, expected], abs=0.006)
    page.see("#pictures").set_input_files(files[:1])
    page.says("#nearest-note", "Choose 2 to 8 pictures; you chose 1.")
    page.see("#pictures").set_input_files(files * 3)
    page.says("#nearest-note", "you chose 9")
    page.see("#pictures").set_input_files(
        [files[0], {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"none"}]
    )
    page.says("#trouble", "not a complete, valid image")
    assert page.see("#neighbours > li").count() == 0


def test_a_phone_takes_photographs(visit: Open) -> None:
    """With its camera; what it took is a photograph like others. A desk has no such button."""
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True)
    page.shows("label[for=camera]")
    assert page.see("#camera").get_attribute("capture") == "environment"
    page.see("#camera").set_input_files(SHIPPED / "china.jpg")
    page.says("#label", "church")
    desk = visit()
    desk.hides("label[for=camera]")


def test_a_theme_is_kept(visit: Open) -> None:
    """System, light, dark, and round again; it outlives the page."""
    page = visit(color_scheme="dark")
    background = "() => getComputedStyle(document.documentElement).backgroundColor"
    dark = page.page.evaluate(background)
    page.see("#theme").click()
    light = page.page.evaluate(background)
    assert light != dark
    page.page.reload()
    page.says("#theme", "Theme: light")
    assert page.page.evaluate(background) == light
    page.see("#theme").click()
    assert page.page.evaluate(background) == dark
    page.see("#theme").click()
    page.says("#theme", "Theme: system")


def test_nothing_scrolls_sideways_on_a_phone(visit: Open) -> None:
    """Empty, answered, comparing and in trouble, with a name that no line can hold."""
    page = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)

    def fits() -> bool:
        wide: bool = page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        return wide

    assert fits()
    page.choose("n" * 200 + ".jpg", (SHIPPED / "china.jpg").read_bytes(), "image/jpeg")
    page.answered()
    page.see("#compare").click()
    page.says("#compare", "Compare again")
    page.see("#nearest-examples").click()
    page.says("#nearest-note", "Cosine")
    assert fits()
    page.choose("notes.txt", b"no picture", "text/plain")
    page.says("#trouble", "not a complete, valid image")
    assert fits()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_serious(visit_both: Open, scheme: str, viewport: dict[str, int]) -> None:
    """Empty, answered with a comparison, and in trouble, in both schemes."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit_both(color_scheme=scheme, viewport=viewport)

    def serious() -> list[tuple[str, list[str]]]:
        found = axe.run(page.page).response["violations"]
        return [
            (rule["id"], [node["html"] for node in rule["nodes"]])
            for rule in found
            if rule["impact"] in ("serious", "critical")
        ]

    assert serious() == []
    page.example("china.jpg")
    page.see("#compare").click()
    page.says("#compare", "Compare again")
    page.see("#nearest-examples").click()
    page.says("#nearest-note", "Cosine")
    assert serious() == []
    page.choose("notes.txt", b"no picture", "text/plain")
    page.says("#trouble", "not a complete, valid image")
    assert serious() == []
