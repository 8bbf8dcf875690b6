"""The page's pure functions, run in Node: the one that Playwright brings along, or that on the path."""

import base64
import json
import math
import shutil
import subprocess
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import errors
from app.http.routes.page import FOLDER
from app.inference.options import WAYS_TO_CHOOSE, EmbedOptions, ImageOptions
from models.pictures import dimmed
from models.schedule import CRITERIA, REDUCERS, WITHOUT_CRITERION
from models.transforms import InputSpec, crop_box


def _node() -> str | None:
    try:
        from playwright._impl._driver import compute_driver_executable
    except ImportError:
        return shutil.which("node")
    return compute_driver_executable()[0]


NODE = _node()
pytestmark = pytest.mark.skipif(NODE is None, reason="neither Node nor Playwright is installed")
NO_BREAK = "\u00a0"


def run(module: str, script: str, given: object = None) -> Any:
    """What the script, an async function's body, returns: it sees the module as `it`, the data as `given`."""
    program = f"""
      const it = await import({json.dumps((FOLDER / module).as_uri())});
      const chunks = [];
      for await (const chunk of process.stdin) chunks.push(chunk);
      const given = JSON.parse(Buffer.concat(chunks).toString());
      const came = await (async () => {{ {script} }})();
      process.stdout.write(JSON.stringify(came) ?? "null");
    """
    assert NODE is not None
    # Without a package.json beside them, the files are modules because they look like it.
    done = subprocess.run(
        [NODE, "--input-type=module", "--experimental-detect-module", "--no-warnings", "-e", program],
        input=json.dumps(given).encode(),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


sides = st.integers(1, 5000)
boxes = st.tuples(
    sides,
    sides,
    st.tuples(st.integers(8, 600), st.integers(8, 600)),
    st.sampled_from(["center", "squash"]),
    st.floats(0.1, 1.0),
)


@settings(max_examples=6)
@given(st.lists(boxes, min_size=20, max_size=60))
def test_the_page_crops_as_the_server_does(cases: list[Any]) -> None:
    """`cropBox` is `crop_box`, for any picture and any model's input."""
    inputs = [
        [width, height, {"height": size[0], "width": size[1], "crop": crop, "crop_share": share}]
        for width, height, size, crop, share in cases
    ]
    came = run("geometry.js", "return given.map((arguments_) => it.cropBox(...arguments_));", inputs)
    for box, (width, height, size, crop, share) in zip(came, cases, strict=True):
        spec = InputSpec(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), crop=crop, crop_share=share)
        left, top, right, bottom = crop_box(width, height, spec)
        expected = (left, top, right - left, bottom - top)
        for mine, its in zip((box["left"], box["top"], box["width"], box["height"]), expected, strict=True):
            assert math.isclose(mine, its, rel_tol=1e-12, abs_tol=1e-9)


# Along one side: (patches, size, stride, pixels that no patch covers).
rows_of_patches = st.integers(2, 32).flatmap(
    lambda size: st.tuples(st.integers(2, 30), st.just(size), st.integers(1, size), st.integers(0, 5))
)


@settings(max_examples=6)
@given(st.lists(rows_of_patches, min_size=20, max_size=60))
def test_the_page_dims_the_pixels_that_the_server_dims(cases: list[tuple[int, int, int, int]]) -> None:
    """`patchEdges` are where `dimmed` goes from one patch to the next, also where patches overlap."""
    inputs = [
        [(patches - 1) * stride + size + rest, patches, size, stride] for patches, size, stride, rest in cases
    ]
    came = run("geometry.js", "return given.map((arguments_) => it.patchEdges(...arguments_));", inputs)
    for edges, (side, patches, size, stride) in zip(came, inputs, strict=True):
        cells = (np.arange(patches, dtype=np.uint8) % 2).reshape(1, patches)
        white = np.full((size, side, 3), 255, np.uint8)
        line = dimmed(cells, white, (size, size), (stride, stride))[0, :, 0]
        changes = np.flatnonzero(np.diff(line.astype(int))) + 1
        assert edges == [0, *changes, side]


def test_what_can_be_chosen_is_what_the_server_takes() -> None:
    """Every choice the page lets a person make is a sound request, with what was chosen in it."""
    choices = [
        {"way": way, "value": 0.35, "criterion": criterion, "reducer": reducer, "model": model}
        for way, criterion, reducer, model in product(WAYS_TO_CHOOSE, CRITERIA, REDUCERS, (None, "a/b"))
    ]
    came = run("request.js", "return given.map((choice) => it.queryOf(choice).toString());", choices)
    queries = run("request.js", "return given.map((query) => [...new URLSearchParams(query)]);", came)
    for choice, query in zip(choices, queries, strict=True):
        options = ImageOptions.model_validate(dict(query))
        cascade = choice["way"] == "cascade"
        assert getattr(options, choice["way"]) == (True if cascade else 0.35)
        assert options.reducer == (None if cascade else choice["reducer"])
        reads_one = not cascade and choice["reducer"] not in WITHOUT_CRITERION
        assert options.criterion == (choice["criterion"] if reads_one else None)
        has_mask = choice["reducer"] != "pool"
        assert (options.mask, options.mask_stages) == (("indices", True) if has_mask else ("none", False))
        assert options.model == choice["model"]
    of_features = run(
        "request.js",
        """return given.map((choice) => [[...it.queryOf(choice, {labels: false})],
                                       [...it.featuresQueryOf(choice)]]);""",
        choices,
    )
    for seen, features in of_features:
        assert EmbedOptions.model_validate(dict(seen)).top_k == 0
        asked = EmbedOptions.model_validate(dict(features))
        assert (asked.normalize, asked.encoding, asked.mask) == (True, "base64", "none")


def test_the_pages_address_names_the_model() -> None:
    """The default one needs no name; a name that there is not is passed over; other parameters stay."""
    assert run(
        "request.js",
        """const models = [{name: "photo"}, {name: "a/b & c"}];
           const named = it.addressOf("http://host:1/vit/?x=1", models, models[1]);
           const of = (href) => it.modelOf(models, new URL(href).search).name;
           return [named, of(named), it.addressOf(named, models, models[0]), of("http://host:1/?model=no")];""",
    ) == ["http://host:1/vit/?x=1&model=a%2Fb+%26+c", "a/b & c", "http://host:1/vit/?x=1", "photo"]


few_vectors = st.integers(2, 8).flatmap(
    lambda count: st.lists(
        st.lists(st.integers(-3, 3), min_size=5, max_size=5), min_size=count, max_size=count
    )
)


@settings(max_examples=6)
@given(st.lists(few_vectors, min_size=10, max_size=30))
def test_the_nearest_come_first(cases: list[list[list[int]]]) -> None:
    """Each picture has all others beside it, by falling cosine, of equal ones the earlier first. The vectors
    come as the server writes them."""
    written = [
        [base64.b64encode(np.array(vector, "<f4").tobytes()).decode() for vector in case] for case in cases
    ]
    came = run("features.js", "return given.map((case_) => it.neighbours(case_.map(it.floatsOf)));", written)
    for found, case in zip(came, cases, strict=True):
        products = np.array(case) @ np.array(case).T
        for own, others in enumerate(found):
            expected = sorted(set(range(len(case))) - {own}, key=lambda each: (-products[own, each], each))
            assert [other["index"] for other in others] == expected
            assert [other["cosine"] for other in others] == products[own, expected].tolist()


@settings(max_examples=6)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=20))
def test_any_name_is_one_word_of_a_shell(names: list[str]) -> None:
    """A photograph's name cannot break out of the curl command."""
    words = run("request.js", "return given.map(it.shellWord);", names)
    printed = subprocess.run(
        ["bash", "-c", "printf '%s\\0' " + " ".join(words)], capture_output=True, check=True, timeout=60
    )
    assert printed.stdout.decode().split("\0")[:-1] == names


def test_the_curl_command_sends_a_file_or_fetches_an_example() -> None:
    """An example is on the server, so the command needs no file."""
    commands = run(
        "request.js",
        """const url = new URL("http://host:1/v1/classify?keep_ratio=0.5&top_k=5");
           return [it.curlCommand(url, {name: "my cat's.jpg"}),
                   it.curlCommand(url, {name: "china.jpg", url: new URL("http://host:1/static/x/china.jpg")}),
                   it.curlCommand(url, {name: "cat.jpg"}, true)];""",
    )
    ask = "'http://host:1/v1/classify?keep_ratio=0.5&top_k=5'"
    assert commands == [
        f"curl --data-binary '@my cat'\\''s.jpg' {ask}",
        f"curl -s http://host:1/static/x/china.jpg | curl --data-binary @- {ask}",
        f'curl -H "X-API-Key: $TRIMVIT_KEY" --data-binary @cat.jpg {ask}',
    ]


def test_numbers_in_words() -> None:
    """As precise as a person needs."""
    assert run(
        "words.js",
        """return [it.percent(0.4918), it.percent(0.0163), it.percent(0.995, 1), it.duration(4.305),
                   it.duration(43.02), it.duration(1234), it.bytes(33554432), it.bytes(1536), it.bytes(7),
                   it.shortLabel("tench, Tinca tinca"), it.sentence("it is"), it.sentence("Why?"),
                   it.sentence("")];""",
    ) == [
        *(
            said.replace(" ", NO_BREAK)
            for said in (
                "49 %",
                "1.6 %",
                "99.5 %",
                "4.3 ms",
                "43 ms",
                "1.23 s",
                "32 MiB",
                "1.5 KiB",
                "7 bytes",
            )
        ),
        "tench",
        "It is.",
        "Why?",
        "",
    ]


def _problems(parent: type[errors.Problem]) -> list[type[errors.Problem]]:
    leaves = [leaf for child in parent.__subclasses__() for leaf in (_problems(child) or [child])]
    return [leaf for leaf in leaves if hasattr(leaf, "status")]


def test_every_problem_of_the_server_is_told_in_words() -> None:
    """A sentence of the page's or the server's, its detail, and when to come back where it says so."""
    of_photographs = ("too-large", "unsupported-media-type", "undecodable-image")
    kinds = _problems(errors.Problem)
    waits = {kind: 2.0 if kind.status in (429, 503) else None for kind in kinds}
    problems = [kind("what was wrong", retry_after_s=wait) for kind, wait in waits.items()]
    came = run(
        "words.js",
        "return given.map(([status, problem, after]) => ({...it.troubleOf(status, problem, after)}));",
        [[problem.status, problem.to_dict(), problem.headers().get("Retry-After")] for problem in problems],
    )
    for trouble, kind in zip(came, kinds, strict=True):
        assert trouble["title"].endswith(".")
        assert trouble["detail"] == "What was wrong."
        assert trouble["retryAfterS"] == waits[kind]
        assert trouble["aboutPhotograph"] == (kind.slug in of_photographs)


def test_answers_of_something_between_are_told_too() -> None:
    """A proxy's error page has no problem document."""
    trouble = run("words.js", "return {...it.troubleOf(502, null, 'Wed, 21 Oct 2026 07:28:00 GMT')};")
    assert trouble["title"] == "The server answered with status 502."
    assert (trouble["detail"], trouble["retryAfterS"]) == ("", None)


SAMPLES = [
    {"clock_s": 100.0, "images_answered": 10, "batches": 4, "batch_images": 10, "batch_fill_sum": 1.0},
    {"clock_s": 104.0, "images_answered": 16, "batches": 6, "batch_images": 17, "batch_fill_sum": 1.5},
    {"clock_s": 112.0, "images_answered": 20, "batches": 8, "batch_images": 20, "batch_fill_sum": 2.5},
]


def test_rates_are_differences_over_the_last_ten_seconds() -> None:
    """Samples older than that go, and so do those from before a restart; one sample has no rate."""
    came = run(
        "stats.js",
        """const kept = given.reduce((samples, sample) => it.withSample(samples, sample), []);
           const restarted = it.withSample(kept, {...given[0], clock_s: 113});
           const clocks = kept.map(({clock_s}) => clock_s);
           return [clocks, it.rates(kept), restarted.length, it.rates(restarted)];""",
        SAMPLES,
    )
    assert came == [
        [104.0, 112.0],
        {"imagesPerSecond": 0.5, "batchFill": 0.5, "imagesPerBatch": 1.5},
        1,
        {"imagesPerSecond": None, "batchFill": None, "imagesPerBatch": None},
    ]


def test_only_the_newest_question_is_current() -> None:
    """A new one, or cancelling, aborts those before and makes them stale."""
    assert run(
        "latest.js",
        """const questions = new it.Latest();
           const [first, second] = [questions.next(), questions.next()];
           const seen = [first.signal.aborted, first.isCurrent(), second.signal.aborted, second.isCurrent()];
           questions.cancel();
           return [...seen, second.signal.aborted, second.isCurrent(), questions.next().isCurrent()];""",
    ) == [True, False, False, True, True, False, True]


def test_a_pause_ends_with_its_question() -> None:
    """Waiting for a busy server is given up as soon as something else is asked."""
    assert run(
        "latest.js",
        """const questions = new it.Latest();
           const {signal} = questions.next();
           const waiting = it.pause(3600000, signal).then(() => "waited", (reason) => reason.name);
           questions.next();
           const late = await it.pause(0, signal).then(() => "waited", (reason) => reason.name);
           await it.pause(0);
           return [await waiting, late];""",
    ) == ["AbortError", "AbortError"]


def test_many_calls_are_one_action() -> None:
    """A slider that is dragged asks once it rests, and at the latest when patience ends."""
    assert run(
        "latest.js",
        """let rested = 0, dragged = 0;
           const rest = it.debounced(() => { rested += 1; }, 5, 60000);
           for (let call = 0; call < 50; call += 1) rest();
           while (rested === 0) await it.pause(1);
           const drag = it.debounced(() => { dragged += 1; }, 60000, 20);
           while (dragged === 0) { drag(); await it.pause(1); }
           return [rested, dragged];""",
    ) == [1, 1]
