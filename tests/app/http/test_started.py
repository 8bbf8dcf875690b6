"""What a terminal is told once the server is ready."""

import msgspec
import pytest

from app.http.started import PHOTOGRAPH, is_for_people, started
from app.messages.to_front_end import Terms
from app.settings.settings import Settings
from models.schedule import compute
from tests.app.fakes import HEADLESS, LARGER, MODEL

# 15 patches and 2 prefix tokens; at ratio 1 a batch has 10 images: 0.1 s + 10 x (0.01 s + 0.03 s) = 0.5 s.
TERMS = {"toy": Terms(0.1, 0.01, 0.03, 0.02, 0.06, batch_tokens=170, image_tokens=17)}
URL = "http://127.0.0.1:8000"


def screen(*models: object, settings: Settings | None = None, **given: object) -> str:
    values = {"streams": 2, "cores": 4, "url": URL, "with_keys": False, **given}
    return started(settings or Settings(), models or (MODEL,), TERMS, **values)  # type: ignore[arg-type]


def test_it_says_what_is_served_on_what_how_fast_where_and_what_next() -> None:
    """On one screen, with the numbers of the warm-up."""
    text = screen(settings=Settings(default_keep_ratio=0.7, threads=3))
    assert "toy: 11 labels (label 0, label 1, label 2, ...), input 21 x 35 pixels" in text
    assert "keep ratio 0.7, criterion mean, reducer drop (defaults" in text
    assert "cpu:0 in float32, 3 threads\n" in text
    assert "keep ratio 1: a single image 80 ms, in batches 40 images/s" in text
    half = compute(MODEL.architecture, MODEL.method.stages, 0.5)
    images = 170 // round(17 * half)
    many = 2 * images / (0.1 + images * (0.01 + 0.03 * half))
    assert f"keep ratio 0.5: a single image {20 + 60 * half:.0f} ms, in batches {many:.0f} images/s" in text
    assert text.index("keep ratio 0.7: a single") < text.index("keep ratio 0.5: a single")
    assert f"{URL}/\n" in text
    assert f"{URL}/docs\n" in text
    assert f'" "{URL}/v1/classify?keep_ratio=0.5&top_k=2"' in text
    assert "curl --data-binary" in text
    lines = text.splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= 100 or "curl" in line for line in lines)


def test_the_photograph_of_the_example_is_there() -> None:
    assert PHOTOGRAPH.is_file()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"url": "http://0.0.0.0:8000"}, '"http://127.0.0.1:8000/v1/classify'),
        ({"url": "http://[::]:8000"}, '"http://[::1]:8000/v1/classify'),
        ({"url": "https://10.0.0.1:443"}, "https://10.0.0.1:443/\n"),
        ({"settings": Settings(grpc_port=8001)}, "  gRPC     127.0.0.1:8001\n"),
        ({"url": "http://[::]:8000", "settings": Settings(grpc_port=8001)}, "  gRPC     [::1]:8001\n"),
        ({"with_keys": True}, 'curl -H "Authorization: Bearer YOUR_KEY" --data-binary'),
        ({"settings": Settings(workers_per_device=2, device="cpu")}, "2 workers, 2 threads each\n"),
        ({"cores": 1}, "1 thread\n"),
        (
            {"settings": Settings(default_criterion="mad", default_reducer="fuse")},
            "criterion mad, reducer fuse",
        ),
    ],
    ids=[
        "all of IPv4",
        "all of IPv6",
        "HTTPS",
        "gRPC",
        "gRPC of IPv6",
        "keys",
        "workers",
        "one core",
        "defaults",
    ],
)
def test_it_follows_the_settings(given: dict[str, object], words: str) -> None:
    assert words in screen(**given)  # type: ignore[arg-type]


def test_other_models() -> None:
    """Several are named, the default one first; one without labels is tried with /v1/embed; a GPU has no
    threads to tell of; without figures there is no line of speed."""
    text = screen(LARGER, MODEL)
    assert text.index("larger: 7 labels") < text.index("toy: 11 labels")
    assert "images/s" not in text
    text = screen(LARGER, MODEL, settings=Settings(model_default="larger.keep_ratio=0.5,larger.reducer=fuse"))
    assert "larger: keep ratio 0.5, criterion mean, reducer fuse" in text
    assert "toy: keep ratio 1, criterion mean, reducer drop" in text
    text = screen(HEADLESS)
    assert "headless: no labels (embeddings only)" in text
    assert "/v1/embed?keep_ratio=0.5" in text
    on_gpu = msgspec.structs.replace(MODEL, device="cuda:0", dtype="bfloat16")
    assert "cuda:0 in bfloat16\n" in screen(on_gpu, settings=Settings(device="cuda:0"))


@pytest.mark.parametrize(
    ("settings", "on_terminal", "told"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"log_format": "text"}, True, True),
        ({"log_format": "text"}, False, False),
        ({"log_format": "json"}, True, False),
        ({"log_level": "warning"}, True, False),
    ],
)
def test_it_is_for_people_only(settings: dict[str, str], on_terminal: bool, told: bool) -> None:
    """On a terminal, unless that is to have JSON, or little."""
    assert is_for_people(Settings(**settings), on_terminal=on_terminal) == told  # type: ignore[arg-type]
