"""`trimvit bench` against the real front end on a fake dispatcher, over a real socket."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from PIL import Image

from app.dispatch.client import Question, Slot
from app.errors import QueueFull
from app.main import create_app
from app.messages.to_front_end import Answer
from app.settings.settings import Settings
from models.schedule import Pruning
from tests.app.commands.conftest import Trimvit
from tests.app.fakes import HEADLESS, LARGER, FakeDispatch, cost, encoded

SHORT = ("--duration-s", "0.5", "--warmup-s", "0.1")


@pytest.fixture
def dispatch() -> FakeDispatch:
    return FakeDispatch()


@pytest.fixture
def url(dispatch: FakeDispatch) -> Iterator[str]:
    """The address of a server with this dispatcher."""
    with served(Settings.model_construct(), dispatch) as address:
        yield address


@contextmanager
def served(settings: Settings, dispatch: FakeDispatch) -> Iterator[str]:
    """The address of a server, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(settings, dispatch), log_config=None))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "one.png").write_bytes(encoded())
    return tmp_path / "photographs"


@pytest.mark.parametrize("loop", [("--concurrency", "3"), ("--rate", "60")], ids=" ".join)
def test_a_load_is_measured(
    trimvit: Trimvit, url: str, photographs: Path, dispatch: FakeDispatch, loop: tuple[str, ...]
) -> None:
    """Both loops: every image is answered, at the ratios of the mix, and the numbers fit together."""
    code, out, err = trimvit(
        "bench", url, *loop, *SHORT, "--keep-ratios", "0.3,1", "--photographs", photographs, "--json",
        "--query", "criterion=iqr&top_k=2",
    )  # fmt: skip
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["url"] == url
    assert report["model"] == {"name": "toy", "device": "cpu:0", "dtype": "float32"}
    assert report["load"]["keep_ratios"] == [0.3, 1.0]
    assert report["answered"] == report["images"] == report["by_status"]["200"] > 0
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["max"]
    costs = {0.3: cost(Pruning(0.3)), 1.0: 1.0}
    for row in report["by_keep_ratio"]:
        assert row["mean_compute"] == pytest.approx(costs[row["keep_ratio"]], abs=1e-5)
    assert {question.ask.pruning.criterion for question in dispatch.questions} == {"iqr"}
    assert {question.ask.top_k for question in dispatch.questions} == {2}


def test_the_report_is_a_table(trimvit: Trimvit, url: str, photographs: Path) -> None:
    """For people: the loop, the throughput, latency since an image was due and since it was sent."""
    code, out, _ = trimvit(
        "bench", url, "--rate", 50, *SHORT, "--keep-ratios", "0.3,1", "--photographs", photographs
    )
    assert code == 0
    for words in (
        f"{url}: toy on cpu:0 in float32",
        "open loop, 50 images/s; 1 photographs; 0.5 s after 0.1 s of warm-up",
        "images answered; ",
        " images/s within the 0.5 s; mean compute ",
        "since it was due ",
        "since it was sent ",
        "sent late by ",
        "by keep ratio, ms",
        "\n0.3 ",
        "\n1 ",
        "p99.9",
    ):
        assert words in out


def test_one_of_several_models_is_loaded(
    trimvit: Trimvit, url: str, dispatch: FakeDispatch, photographs: Path
) -> None:
    """The default one, unless another is named; one without labels answers with features."""
    dispatch.others = (LARGER, HEADLESS)
    for named, model in (
        ((), "toy"),
        (("--model", "larger"), "larger"),
        (("--query", "model=larger"), "larger"),
    ):
        dispatch.questions.clear()
        code, out, err = trimvit("bench", url, *named, *SHORT, "--photographs", photographs, "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["model"]["name"] == model
        assert {question.model for question in dispatch.questions} == {model}
    dispatch.questions.clear()
    code, _, _ = trimvit("bench", url, "--model", "headless", *SHORT, "--photographs", photographs)
    assert code == 0
    assert all(question.ask.features and question.model == "headless" for question in dispatch.questions)


def test_the_report_says_what_the_answer_cache_answered(
    trimvit: Trimvit, dispatch: FakeDispatch, photographs: Path
) -> None:
    """Or its throughput would be taken for the model's."""
    with served(Settings(answer_cache_bytes=1 << 20), dispatch) as url:
        code, out, err = trimvit("bench", url, *SHORT, "--photographs", photographs)
        assert (code, err) == (0, "")
        assert " from the server's answer cache" in out
        _, out, _ = trimvit("bench", url, *SHORT, "--photographs", photographs, "--json")
        report = json.loads(out)
        assert report["cached"] == report["answered"] > 0


def test_the_bundled_photographs_are_sent_without_a_remark(trimvit: Trimvit, url: str) -> None:
    """What else lies in their folder is the package's own affair."""
    code, out, err = trimvit("bench", url, *SHORT)
    assert (code, err) == (0, "")
    assert "; 4 photographs; " in out


def test_refused_images_are_counted_and_fail_the_command(
    trimvit: Trimvit, url: str, dispatch: FakeDispatch
) -> None:
    """By status and problem type; the bundled photographs are sent where no folder is named."""
    dispatch.fails = QueueFull("the queue is full", retry_after_s=1)
    code, out, _ = trimvit("bench", url, "--concurrency", 1, *SHORT, "--json")
    report = json.loads(out)
    assert code == 1
    assert report["answered"] == 0
    assert report["by_status"] == {"429": report["images"]}
    assert report["by_problem"] == {"queue-full": report["images"]}
    code, out, _ = trimvit("bench", url, "--concurrency", 1, *SHORT)
    assert code == 1
    assert " x 429" in out
    assert " x queue-full" in out


def test_an_image_without_an_answer_is_a_timeout(
    trimvit: Trimvit, url: str, photographs: Path, dispatch: FakeDispatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word stands in place of a status. (The first image, which shows that it can be, is answered.)"""
    answer = dispatch.classify

    async def only_the_first(question: Question, slot: Slot) -> Answer:
        if dispatch.questions:
            await asyncio.sleep(60)
        return await answer(question, slot)

    monkeypatch.setattr(dispatch, "classify", only_the_first)
    code, out, _ = trimvit(
        "bench", url, "--concurrency", 2, *SHORT, "--timeout-s", 1, "--photographs", photographs, "--json",
        "--warmup-s", 0,
    )  # fmt: skip
    assert code == 1
    assert json.loads(out)["by_status"] == {"timeout": 2}


def test_the_plot_is_a_picture(trimvit: Trimvit, url: str, photographs: Path, tmp_path: Path) -> None:
    """With --plot, after the report."""
    plot = tmp_path / "latency.png"
    code, _, _ = trimvit(
        "bench", url, "--rate", 50, *SHORT, "--keep-ratios", "0.3,1", "--photographs", photographs,
        "--plot", plot,
    )  # fmt: skip
    assert code == 0
    assert Image.open(plot).size[0] > 1000


def test_without_matplotlib_a_plot_is_refused_at_once(
    trimvit: Trimvit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And it is said what to install."""
    monkeypatch.setitem(__import__("sys").modules, "app.commands.plot", None)
    code, out, err = trimvit("bench", "http://127.0.0.1:9", "--plot", tmp_path / "latency.png")
    assert (code, out) == (1, "")
    assert err == "trimvit bench: --plot needs matplotlib: pip install 'trimvit[train]'\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--query", "top_k=x"], 1, "refused the image with 422: top_k must be a whole number"),
        (["--query", "top_k"], 2, "--query must be name=value&name=value, got 'top_k'"),
        (["--rate", "5", "--concurrency", "2"], 2, "give --concurrency (a closed loop) or --rate"),
        (["--query", "keep_ratio=1", "--keep-ratios", "1"], 2, "give --keep-ratios or keep_ratio in --query"),
        (["--query", "model=toy", "--model", "toy"], 2, "give --model or model in --query, not both"),
        (["--model", "tot"], 1, "there is no model 'tot'; did you mean toy? models are toy"),
        (["--plot", "plot.txt"], 2, "--plot plot.txt must end with .png, .svg or .pdf"),
        (
            ["--keep-ratios", "0.5,2"],
            2,
            "--keep-ratios must be a list of numbers above 0 and at most 1, separated",
        ),
        (["--photographs", "gone"], 1, "gone cannot be read: No such file or directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_told(
    trimvit: Trimvit, url: str, arguments: list[str], code: int, words: str
) -> None:
    """Before anything is loaded."""
    found, out, err = trimvit("bench", url, *SHORT, *arguments)
    assert (found, out) == (code, "")
    assert words in err


def test_a_server_that_is_not_there_or_none_of_ours_is_told(
    trimvit: Trimvit, url: str, dispatch: FakeDispatch
) -> None:
    """In a line."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    code, _, err = trimvit("bench", f"http://127.0.0.1:{port}", *SHORT)
    assert code == 1
    assert f"http://127.0.0.1:{port} cannot be reached" in err
    code, _, err = trimvit("bench", "localhost:8000", *SHORT)
    assert code == 2
    assert "did you mean http://localhost:8000?" in err
    code, _, err = trimvit("bench", f"{url}/elsewhere", *SHORT)
    assert code == 1
    assert "404" in err
    dispatch.model = None
    code, _, err = trimvit("bench", url, *SHORT)
    assert code == 1
    assert "responds with 503: no worker has loaded the model yet" in err
