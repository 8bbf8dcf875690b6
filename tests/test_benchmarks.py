"""The benchmarks measure what they say: arithmetic by hand, and the commands on a small network."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import accuracy, engine, host, outside, speed, warm_up
from benchmarks.contestants import Contestant, load_model
from benchmarks.features import nearest
from benchmarks.features import rows_of as features_rows
from benchmarks.memory import trend
from benchmarks.photographs import load_photographs
from benchmarks.report import Spread, spread, table
from benchmarks.rounds import Plan, measure
from models.schedule import compute
from models.training.answers import Answers
from models.transforms import InputSpec

PHOTOGRAPHS = Path(__file__).parent / "photographs"
SMALL = "random:test_vit"


class Clock:
    """Time that passes only while a contestant runs; and who ran."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[tuple[str, int]] = []

    def __call__(self) -> float:
        return self.now

    def contestant(self, name: str, images: int, seconds: Callable[[int], float]) -> Contestant:
        def run(turn: int) -> None:
            self.ran.append((name, turn))
            self.now += seconds(turn)

        return Contestant(images, run)


def test_every_contestant_is_timed_once_per_round_and_the_warm_up_is_left_out() -> None:
    """Seconds per image, one figure a round, whatever the warm-up took."""
    clock = Clock()
    contestants = {
        "slow at first": clock.contestant("slow at first", 4, lambda turn: 100.0 if turn < 2 else 2.0),
        "steady": clock.contestant("steady", 1, lambda turn: 0.25),
        "ageing": clock.contestant("ageing", 2, lambda turn: turn + 1.0),
    }
    seconds = measure(contestants, Plan(rounds=3, warm_up=2, sample_s=0), "", clock, sleep=lambda _: None)
    assert seconds == {"slow at first": [0.5] * 3, "steady": [0.25] * 3, "ageing": [1.5, 2.0, 2.5]}
    rounds = [clock.ran[start : start + 3] for start in range(0, 15, 3)]
    assert all({name for name, _ in ran} == set(contestants) for ran in rounds)
    assert all({turn for _, turn in ran} == {number} for number, ran in enumerate(rounds))


@pytest.mark.parametrize(("cpu_time", "counted"), [(True, 3.0), (False, 0.5)])
def test_what_counts_is_the_clock_or_the_cpus_time(
    monkeypatch: pytest.MonkeyPatch, cpu_time: bool, counted: float
) -> None:
    """On request the process's own time, else that of the clock on the wall."""
    cpu, wall = Clock(), Clock()
    monkeypatch.setattr(time, "process_time", cpu)
    monkeypatch.setattr(time, "perf_counter", wall)

    def run(turn: int) -> None:
        cpu.now += 3
        wall.now += 0.5

    plan = Plan(rounds=1, warm_up=1, sample_s=0, cpu_time=cpu_time)
    assert measure({"one": Contestant(1, run)}, plan, "", sleep=lambda _: None) == {"one": [counted]}


def test_dtypes_are_compared_image_by_image() -> None:
    """By hand: four images, of which int8 gets one more wrong, which is a change of -25 points, give or take
    the deviation of (0, 0, 0, -1) over the root of 4."""
    truth = np.array([0, 1, 2, 3])
    nothing = np.zeros((1, 4))
    float32 = Answers(truth, np.array([[0, 1, 5, 3]]), nothing, nothing)
    int8 = Answers(truth, np.array([[0, 1, 6, 4]]), nothing, nothing)
    first, second = accuracy.rows_of([0.5], {"float32": float32, "int8": int8})
    assert (first["top1"], first["change"], first["agreement"]) == (75, 0, 100)
    assert (second["top1"], second["change"], second["agreement"]) == (50, -25, 50)
    assert second["change_error"] == 25
    assert second["keep_ratio"] == 0.5


def test_the_order_is_drawn_anew_and_by_the_seed() -> None:
    """No contestant always follows the same other one."""

    def orders(seed: int) -> list[str]:
        clock = Clock()
        contestants = {name: clock.contestant(name, 1, lambda _: 1.0) for name in "abcd"}
        measure(contestants, Plan(20, 1, 0, seed), "", clock, sleep=lambda _: None)
        ran = "".join(name for name, _ in clock.ran)
        return [ran[start : start + 4] for start in range(0, len(ran), 4)]

    assert len(set(orders(seed=0))) > 5
    assert orders(seed=0) == orders(seed=0) != orders(seed=1)


def test_a_short_call_is_repeated_until_the_sample_is_long_enough() -> None:
    """Calls of 0.3 s fill a sample of 1 s with four, each in a turn of its own."""
    clock = Clock()
    contestants = {"short": clock.contestant("short", 2, lambda _: 0.3)}
    seconds = measure(contestants, Plan(rounds=1, warm_up=1, sample_s=1), "", clock, sleep=lambda _: None)
    assert clock.ran == [("short", turn) for turn in (0, 4, 5, 6, 7)]
    assert seconds["short"] == [pytest.approx(0.15)]


@pytest.mark.parametrize(("rounds", "warm_up"), [(0, 1), (1, 0)])
def test_a_plan_without_rounds_is_refused(rounds: int, warm_up: int) -> None:
    """There is nothing to measure, or nothing to find the number of calls by."""
    with pytest.raises(ValueError, match="at least 1"):
        Plan(rounds, warm_up, 0.2)


def test_spread_and_table() -> None:
    """Median, quartiles and extremes; lists stay out of the table, and what is missing is blank."""
    figure = spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert figure == Spread(3.0, 2.0, 4.0, 1.0, 5.0)
    rows = [{"name": "a", "share": figure, "met": True}, {"name": "b", "met": False, "samples": [1]}]
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(rows).splitlines()] == [
        ["name", "share", "met"],
        ["-" * 6, "-" * 34, "-" * 5],
        ["a", "3.000 (2.000-4.000; 1.000-5.000)", "yes"],
        ["b", "", "NO"],
    ]


def test_trend_by_hand() -> None:
    """2 MiB in 1,000 batches are 2,048 KiB, without error on a line; and a flat one has an error."""
    assert trend([(1000, 5.0), (1500, 6.0), (2000, 7.0)]).kib_per_1000_batches == 2048
    assert trend([(1000, 5.0), (1500, 6.0), (2000, 7.0)]).standard_error == 0
    # Residuals -1/3, 2/3, -1/3: their squares sum to 2/3, over 1 degree of freedom and 2 * 500 ** 2.
    flat = trend([(1000, 5.0), (1500, 6.0), (2000, 5.0)])
    assert flat.kib_per_1000_batches == 0
    assert flat.standard_error == pytest.approx(1024 * 1000 * (2 / 3 / (2 * 500**2)) ** 0.5, abs=0.01)


def test_the_ideal_of_mixed_ratios_is_interpolated_over_compute() -> None:
    """Where the cost of an image is a straight line over its MACs, the ideal is exact between the ratios."""
    loaded = load_model(SMALL)
    arch, stages = loaded.model.arch, loaded.model.stages
    known, ratios = np.array([0.3, 0.5, 1.0]), np.array([0.35, 0.6, 0.95, 1.0])
    share = np.array([compute(arch, stages, ratio) for ratio in known])
    costs = np.stack([2 + 3 * share, 5 * share], axis=1)
    expected = np.mean([compute(arch, stages, ratio) for ratio in ratios])
    assert speed._ideal(loaded, ratios, known, costs) == pytest.approx([2 + 3 * expected, 5 * expected])


def test_new_ratios_cover_the_range_evenly_and_differ() -> None:
    """One ratio from each equal part of 0.3 to 1, in another order and place for every turn."""
    draw = speed._drawn_anew(7, seed=0)
    first, second = draw(0), draw(1)
    for ratios in (first, second):
        assert sorted((np.array(ratios) - 0.3) / 0.7 * 7 // 1) == list(range(7))
    assert first == draw(0) != second


def test_too_few_photographs_are_repeated_as_different_crops(tmp_path: Path) -> None:
    """Four files make eleven images, no two alike; other files are passed over; none at all is an error."""
    spec = InputSpec(size=(20, 28), mean=(0.5,) * 3, std=(0.5,) * 3)
    pixels = load_photographs(PHOTOGRAPHS, spec, 11)
    assert pixels.shape == (11, 20, 28, 3)
    assert len({image.numpy().tobytes() for image in pixels}) == 11
    (tmp_path / "labels.txt").write_text("tench")
    with pytest.raises(ValueError, match="no images in"):
        load_photographs(tmp_path, spec, 1)
    Image.new("RGB", (30, 30)).save(tmp_path / "one.png")
    assert len(load_photographs(tmp_path, spec, 1)) == 8


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Runs a command of benchmarks.engine and gives back its rows; leaves PyTorch's threads as they were."""
    threads = torch.get_num_threads()

    def run(name: str, *arguments: str) -> list[dict[str, Any]]:
        output = tmp_path / "result.json"
        engine.main([name, "--output", str(output), *arguments])
        text = output.read_text()
        assert str(tmp_path) not in text
        assert str(PHOTOGRAPHS.parent) not in text
        report = json.loads(text)
        assert report["machine"]["cores"] >= 1
        assert report["command"] == f"python -m benchmarks.engine {name}"
        return report["results"]

    yield run
    torch.set_num_threads(threads)


SHORT = [
    *("--model", SMALL, "--photographs", str(PHOTOGRAPHS), "--dtypes", "float32"),
    *("--rounds", "1", "--warm-up", "1", "--sample-s", "0"),
]


def test_homogeneous(results: Callable[..., list[dict[str, Any]]]) -> None:
    """A row for timm and for each ratio; speed-up and share follow from the rates."""
    timm, same, half = results("homogeneous", *SHORT, "--batch-sizes", "3", "--ratios", "1", "0.5")
    assert [row["contestant"] for row in (timm, same, half)] == ["timm", "keep_ratio 1", "keep_ratio 0.5"]
    assert same["macs_ratio"] == 1 < half["macs_ratio"]
    for row in (same, half):
        speed_up = row["images_per_s"] / timm["images_per_s"]
        assert row["speed_up"]["median"] == pytest.approx(speed_up, rel=0.02)
        share = row["speed_up"]["median"] / row["macs_ratio"]
        assert row["share_of_macs_ratio"]["median"] == pytest.approx(share, rel=0.02)


def test_mixed(results: Callable[..., list[dict[str, Any]]]) -> None:
    """Both ways of mixing for each batch size, with as many ratios measured as asked for at most."""
    rows = results("mixed", *SHORT, "--batch-sizes", "3", "5", "--most-ratios", "4", "--orders", "2")
    assert [(row["batch"], row["ratios"], row["ratios_measured"]) for row in rows] == [
        *((3, "same", 3), (3, "new", 3)),
        *((5, "same", 4), (5, "new", 4)),
    ]
    for row in rows:
        share = row["images_per_s"] / row["ideal_images_per_s"]
        assert row["share_of_ideal"]["median"] == pytest.approx(share, rel=0.02)
        assert row["met"] == (row["share_of_ideal"]["median"] >= 0.95)


def test_user(results: Callable[..., list[dict[str, Any]]]) -> None:
    """timm at each batch size and ours in streams, as times of timm's largest batch and of its best."""
    arguments = ("--batch-sizes", "1", "4", "--images", "8", "--ratios", "0.5", "--streams", "2")
    rows = results("user", *SHORT, *arguments)
    assert [(row["contestant"], row["batch"]) for row in rows] == [
        *(("timm", 1), ("timm", 4)),
        ("keep_ratio 0.5", 8),
    ]
    rates = [row["images_per_s"] for row in rows]
    best = max((1, 4), key=dict(zip((1, 4), rates[:2], strict=True)).__getitem__)
    for row in rows:
        assert row["times_timm_batch_4"]["median"] == pytest.approx(row["images_per_s"] / rates[1], rel=0.02)
        of_best = row["images_per_s"] / max(rates[:2])
        assert row[f"times_best_timm_batch_{best}"]["median"] == pytest.approx(of_best, rel=0.02)


def test_outside_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the runtimes the command ends and names the extra."""
    monkeypatch.setattr(outside, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"not installed: openvino, nncf, onnxruntime.*'\.\[bench\]'"):
        engine.main(["outside", *SHORT])


@pytest.mark.skipif(outside.missing_packages() != [], reason="the bench extra is not installed")
def test_outside(results: Callable[..., list[dict[str, Any]]]) -> None:
    """Every runtime has a row beside timm and ours, after its logits were found to be timm's."""
    rows = results("outside", *SHORT, "--batch-sizes", "2", "--ratios", "0.5")
    assert {row["contestant"] for row in rows} == {
        *("timm float32", "keep_ratio 0.5 float32"),
        *("OpenVINO float32", "OpenVINO bfloat16", "OpenVINO int8"),
        *("ONNX Runtime float32", "ONNX Runtime int8"),
    }
    timm = rows[0]["images_per_s"]
    for row in rows:
        assert row["times_timm_float32"]["median"] == pytest.approx(row["images_per_s"] / timm, rel=0.02)


def test_a_runtime_with_other_logits_is_no_reference() -> None:
    """What does not compute timm's network is refused by name, and so is a logit that is no number."""
    vit = load_model(SMALL).model.vit
    pixels = torch.rand(1, 3, 160, 160)
    with torch.inference_mode():
        logits = vit(pixels).numpy()
    outside._check("Some float32", Contestant(1, lambda _: logits * 1.0005), vit, pixels)
    for wrong in (logits * 1.1, logits * np.nan):
        with pytest.raises(RuntimeError, match="logits of Some float32 differ"):
            outside._check("Some float32", Contestant(1, lambda _, wrong=wrong: wrong), vit, pixels)


@pytest.mark.system
def test_host(tmp_path: Path) -> None:
    """A real server whose workers compute nothing and the bare route answer all three loads; shares follow
    from the rates, and every kind of process has its CPU time."""
    output = tmp_path / "result.json"
    arguments = ("--rounds", "1", "--seconds", "0.5", "--clients", "2", "--output", str(output))
    host.main(["--photographs", str(PHOTOGRAPHS), *arguments])
    text = output.read_text()
    assert str(tmp_path) not in text
    assert str(PHOTOGRAPHS.parent) not in text
    rows = json.loads(text)["results"]
    assert [row["load"] for row in rows] == ["small", "large", "pixels"]
    for row in rows:
        share = row["per_s"]["median"] / row["bare_per_s"]["median"]
        assert row["share_of_bare"]["median"] == pytest.approx(share, rel=0.02)
        assert {"http_cpu_ms", "decode_cpu_ms", "generator_cpu_ms", "bare_cpu_ms"} <= row.keys()
        assert ("decode_cpu_times_plain" in row) == (row["load"] != "pixels")


def test_host_counts_in_bare_p50s_what_an_answer_takes_beyond_decoding() -> None:
    """10 ms where the bare route takes 2 and decoding 2 are 3 p50s of the bare route more."""
    ours = host.Sample(100.0, 10.0, 20.0, {"http": 3.0, "decode": 2.5})
    bare = host.Sample(400.0, 2.0, 5.0, {"bare": 1.5, "generator": 0.1})
    row = host.row_of("small", 1, {"trimvit": [ours], "bare": [bare]}, [2.0])
    medians = {key: value.median for key, value in row.items() if isinstance(value, Spread)}
    assert medians["share_of_bare"] == 0.25
    assert medians["p50_beyond_bare_and_decoding"] == 3.0
    assert medians["http_cpu_times_bare"] == 2.0
    assert medians["decode_cpu_times_plain"] == 1.25


@pytest.mark.system
@pytest.mark.long
def test_warm_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundled model warmed up as a worker does it, and every kind of batch that serving brings held
    against what was learned."""
    output = tmp_path / "result.json"
    threads = torch.get_num_threads()
    warm_up.main(["--batches", "1", "--output", str(output)])
    assert torch.get_num_threads() == threads
    report = json.loads(output.read_text())
    assert report["model"] == "trimvit-small-109"
    sizes = [row["images"] for row in report["results"]]
    assert sizes[:2] == [1, 1] or sizes[:2] == [1, 2]
    assert sizes[-1] == 3 * sizes[-2] // 2
    for row in report["results"]:
        assert row["measured_by_predicted"]["median"] > 0
        assert 0 <= row["within_20_percent"] <= 1


def test_the_nearest_feature_is_of_another_image() -> None:
    """Never the image itself, however near it is to itself."""
    index = np.array([[1.0, 0], [0.9, 0.1], [0, 1]])
    assert nearest(index, index).tolist() == [1, 0, 1]


def test_features_are_compared_by_hand() -> None:
    """The pruned feature of the third image is turned to the first one, and with it goes its neighbour."""
    unpruned = np.array([[1.0, 0], [0.8, 0.6], [0, 2], [-0.6, 0.8]])
    pruned = unpruned.copy()
    pruned[2] = [3, 0]
    features = np.stack([unpruned, pruned])
    whole, some = features_rows((1.0, 0.5), (1.0, 0.6), features, np.array([0, 0, 1, 1]))
    assert (whole["cosine"], whole["neighbour, index unpruned"], whole["same class"]) == (1.0, 100.0, 100.0)
    assert (some["cosine"], some["cosine_error"]) == (0.75, 0.25)
    assert (some["neighbour, index unpruned"], some["same class"]) == (75.0, 75.0)
