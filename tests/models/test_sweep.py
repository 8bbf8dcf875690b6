"""Sweeps of a small random network over a few photographs."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pydantic import ValidationError

from models.classifier import Classifier
from models.load import Card, ModelError, input_spec_of, load, save
from models.schedule import Pruning, compute, default_stages
from models.training import command
from models.training import sweep as module
from models.training.config import EvaluateConfig, SweepConfig
from models.training.evaluate import evaluate, table
from models.training.labelled import samples_for
from models.training.loading import BrokenImages
from models.training.packages import MissingPackageError
from models.training.resuming import ResumeError
from models.training.sweep import sweep

pytestmark = pytest.mark.usefixtures("without_shape_checks")

PHOTOGRAPHS = Path(__file__).parents[1] / "photographs"
CLASSES = ("astronaut", "chelsea", "china", "coffee")


def save_random_model(path: Path, seed: int) -> None:
    """The least of timm's ViTs with a fixed input size, for pictures of 48 pixels (9 patches) and four
    classes."""
    torch.manual_seed(seed)
    vit = timm.create_model("test_vit3", num_classes=4, img_size=48)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    card = Card(
        architecture="test_vit3",
        labels=CLASSES,
        input=input_spec_of(vit),
        stages=default_stages(len(vit.blocks), "all"),
        model_args={"num_classes": 4, "img_size": 48},
    )
    save(path, vit, card)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    save_random_model(path, seed=0)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each committed photograph as a class of its own, whole and three crops of it: 16 images."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in CLASSES:
        (folder / name).mkdir()
        with Image.open(PHOTOGRAPHS / f"{name}.jpg") as image:
            small = image.convert("RGB").resize((120, 100))
        for index in range(4):
            small.crop((10 * index, 5 * index, 120, 100)).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture
def config(model: Path, folder: Path, tmp_path: Path) -> Callable[..., SweepConfig]:
    def make(**changes: Any) -> SweepConfig:
        settings: dict[str, Any] = {
            "data": folder,
            "output": tmp_path / "sweep",
            "models": (str(model),),
            "keep_ratios": (0.7, 0.3),
            "criteria": ("variance", "mean", "random"),
            "reducers": ("drop", "merge"),
            "keep_masses": (0.6,),
            "batch_size": 3,
            "device": "cpu",
            "dtype": "float32",
            "workers": 0,
            "speed_rounds": 2,
            "speed_batches": 1,
            "correlation_images": 5,
            "picture_images": 2,
        }
        return SweepConfig(**{**settings, **changes})

    return make


def test_a_patch_stride_gives_every_model_more_patches(config: Callable[..., SweepConfig]) -> None:
    """The sweep is of the model with that stride; one of the plain model does not go on from it."""
    quick = {"keep_ratios": (0.5,), "criteria": ("variance",), "reducers": ("drop",), "keep_masses": ()}
    quick |= {"speed": False, "patch_stride": 8}
    overlapping = sweep(config(**quick))
    with_stride, without = (
        compute(loaded.model.arch, loaded.model.stages, 0.5, "drop")
        for loaded in (load(config().models[0], patch_stride=stride) for stride in (8, None))
    )
    assert overlapping[1].compute == pytest.approx(with_stride, abs=1e-4)
    assert with_stride != pytest.approx(without, abs=1e-3)
    with pytest.raises(ResumeError, match="patch_stride 8, not None"):
        sweep(config(**{**quick, "patch_stride": None}))


def test_a_sweep_from_end_to_end(config: Callable[..., SweepConfig]) -> None:
    """A row for every setting, and all files; the rows stand in CSV and JSON as they are given back."""
    settings = config()
    rows = sweep(settings)
    names = ["variance", "mean", "random", "merge"]
    want = [("(unpruned)", None), *[(name, None) for name in names * 2], *[(name, 0.6) for name in names[:3]]]
    assert [(row.method, row.keep_mass) for row in rows] == want
    assert [row.keep_ratio for row in rows[:9]] == [1.0, *[0.7] * 4, *[0.3] * 4]
    assert {row.images for row in rows} == {16}
    assert {row.model for row in rows} == {"random"}
    timed = [row.images_per_s for row in rows if row.keep_mass is None]
    assert all(speed is not None and speed > 0 for speed in timed)
    assert {row.images_per_s for row in rows[9:]} == {None}
    assert [row.reference for row in rows] == [
        None,
        *[None, "variance", "variance", "variance"] * 2,
        *[None] * 3,
    ]

    output = settings.output
    assert (output / "sweep.md").read_text() == table(rows) + "\n"
    with (output / "sweep.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["method"], float(line["top1"])) for line in lines] == [
        (row.method, row.top1) for row in rows
    ]
    text = (output / "sweep.json").read_text()
    record = json.loads(text)
    assert [row["difference"] for row in record["rows"]] == [row.difference for row in rows]
    assert record["images"] == 16
    assert record["machine"]["computing"] == "cpu float32"
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record["settings"]["models"] == ["random"]
    assert str(settings.data.parent) not in text
    correlation = record["rank_correlation"]["random"]
    assert correlation["criteria"] == ["variance", "mean", "random"]
    assert np.array(correlation["mean"]).shape == (3, 3)
    for name in ("accuracy_compute", "accuracy_speed", "agreement_compute", "rank_correlation", "kept"):
        with Image.open(output / f"{name}.png") as picture:
            assert picture.convert("L").getextrema()[0] < 128, name


def test_a_sweep_says_what_evaluate_says(config: Callable[..., SweepConfig], model: Path) -> None:
    """The two share their pass over the images, and so their figures."""
    swept = sweep(config(speed=False, keep_masses=(), keep_ratios=(1.0, 0.3), reducers=("drop",)))
    evaluated = evaluate(
        EvaluateConfig(
            data=config().data,
            model=str(model),
            keep_ratios=(1.0, 0.3),
            criteria=("variance", "mean", "random"),
            batch_size=3,
            device="cpu",
            dtype="float32",
            workers=0,
        )
    )
    for one, other in zip(swept, evaluated, strict=True):
        assert (one.method, one.top1, one.top1_change_error, one.agreement, one.agreement_error) == (
            other.method,
            other.top1,
            other.top1_change_error,
            other.agreement,
            other.agreement_error,
        )
        assert one.images_per_s is None
        assert other.images_per_s is not None


def test_pictures_show_what_is_kept(config: Callable[..., SweepConfig], model: Path, folder: Path) -> None:
    """Patches that are left after the last stage have their own brightness, the others a quarter of it."""
    settings = config(keep_ratios=(0.5,), criteria=("mean",), reducers=("drop",))
    loaded = load(str(model))
    classifier = Classifier(loaded.model, loaded.input, "cpu", torch.float32)
    few = module._Few(settings, samples_for(loaded.card, folder), classifier, BrokenImages("stop"))
    one, other = module._pictures(settings, classifier, loaded.labels, [("mean", "drop")], few)
    assert [one.caption, other.caption] == ["astronaut", "china"]
    output = classifier.compare(torch.from_numpy(one.pixels)[None], [[Pruning(0.5, "mean")]])[0]
    left = output.kept[-1][0].tolist()
    for patch in range(9):
        down, across = 16 * (patch // 3), 16 * (patch % 3)
        part = (slice(down, down + 16), slice(across, across + 16))
        factor = 1.0 if patch in left else 0.25
        np.testing.assert_array_equal(one.kept[0][0][part], (one.pixels[part] * factor).astype(np.uint8))


# Several models.


def test_models_are_swept_side_by_side(
    config: Callable[..., SweepConfig], model: Path, tmp_path: Path
) -> None:
    """Each under its label, in the table and in the plots, with pictures of its own."""
    save_random_model(tmp_path / "other.safetensors", seed=1)
    settings = config(models=(f"first={model}", str(tmp_path / "other.safetensors")), speed=False)
    rows = sweep(settings)
    assert [row.model for row in rows] == ["first"] * 12 + ["other"] * 12
    assert {row.agreement for row in rows if row.method == "(unpruned)"} == {100.0}
    assert "| other " in (settings.output / "sweep.md").read_text()
    files = {path.name for path in settings.output.glob("*.png")}
    assert files == {
        "accuracy_compute.png",
        "agreement_compute.png",
        "rank_correlation.png",
        "kept-first.png",
        "kept-other.png",
    }


@pytest.mark.parametrize(
    ("reference", "label", "model"),
    [
        ("trimvit-small-109", "trimvit-small-109", "trimvit-small-109"),
        ("tuned=run/model.safetensors", "tuned", "run/model.safetensors"),
        ("run/model.safetensors", "model", "run/model.safetensors"),
        ("run/a=b/model.pth", "model", "run/a=b/model.pth"),
        ("hf-hub:owner/name", "name", "hf-hub:owner/name"),
    ],
)
def test_labels_of_models(config: Callable[..., SweepConfig], reference: str, label: str, model: str) -> None:
    """Given before an equals sign, else the last part of the reference."""
    assert config(models=(reference,)).labelled_models == {label: model}


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (("a/model.pth", "b/model.pth"), "two models are labelled 'model'; write LABEL=REFERENCE"),
        (("=x.pth",), "the label '' must be letters"),
        (("a b=x.pth",), "the label 'a b' must be letters"),
        ((), "models"),
    ],
    ids=str,
)
def test_labels_that_cannot_be_are_refused(
    config: Callable[..., SweepConfig], models: tuple[str, ...], words: str
) -> None:
    """They name folders and files, one each."""
    with pytest.raises(ValidationError, match=words):
        config(models=models)


# Interrupted and resumed.


def interrupt(monkeypatch: pytest.MonkeyPatch, function: str, call: int) -> None:
    """Let the sweep break off at a call of one of its steps."""
    real = getattr(module, function)
    calls = iter(range(1000))

    def failing(*arguments: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, function, failing)


def files_of(folder: Path) -> dict[str, bytes]:
    """All files of figures but the JSON, which says when it was written."""
    names = ["sweep.md", "sweep.csv", "state.json"]
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("call", [*(pytest.param(call, marks=pytest.mark.long) for call in (0, 1, 5)), 8])
def test_a_resumed_sweep_is_the_one_that_was_not_interrupted(
    config: Callable[..., SweepConfig], model: Path, tmp_path: Path, call: int
) -> None:
    """Broken off at any batch of any model and started again, it goes on there and ends as it would have."""
    save_random_model(tmp_path / "other.safetensors", seed=1)
    models = (str(model), str(tmp_path / "other.safetensors"))
    whole = config(models=models, speed=False)
    parts = config(models=models, speed=False, output=tmp_path / "parts")
    rows = sweep(whole)
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt(monkeypatch, "answers_to", call)
        with pytest.raises(KeyboardInterrupt):
            sweep(parts)
    assert not (parts.output / "sweep.md").exists()
    written = sorted(parts.output.glob("answers/*/*.npz"))
    assert len(written) == call  # two models of six batches
    # What a killed write leaves is no answer.
    (parts.output / "answers" / "random" / f"{3 * call:08}.unfinished").write_bytes(b"PK")
    times = {path: path.stat().st_mtime_ns for path in written}
    assert sweep(parts) == rows
    assert {path: path.stat().st_mtime_ns for path in written} == times
    assert files_of(parts.output) == files_of(whole.output)
    for path in whole.output.glob("answers/*/*.npz"):
        with np.load(path) as one, np.load(parts.output / path.relative_to(whole.output)) as other:
            for name in one.files:
                np.testing.assert_array_equal(one[name], other[name])


def test_rounds_are_not_measured_again(config: Callable[..., SweepConfig]) -> None:
    """Broken off in the third round, it measures that and no other; more rounds may be asked for later."""
    settings = config(speed_rounds=3)
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt(monkeypatch, "speed_round", 3)  # after the unmeasured one and two rounds
        with pytest.raises(KeyboardInterrupt):
            sweep(settings)
    rounds = sorted(settings.output.glob("speed/random/*.json"))
    assert [path.name for path in rounds] == ["0000.json", "0001.json"]
    before = [path.read_text() for path in rounds]
    sweep(settings)
    assert len(list(settings.output.glob("speed/random/*.json"))) == 3
    sweep(config(speed_rounds=4))
    assert len(list(settings.output.glob("speed/random/*.json"))) == 4
    assert [path.read_text() for path in rounds] == before


def test_models_take_turns_in_every_round(
    config: Callable[..., SweepConfig], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that their speeds can be compared on a machine whose own speed changes."""
    other = tmp_path / "other.safetensors"
    save_random_model(other, seed=1)
    measured: list[Classifier] = []
    measure = module.speed_round

    def recorded(classifier: Classifier, batches: Any, settings: Any) -> list[float]:
        measured.append(classifier)
        return measure(classifier, batches, settings)

    monkeypatch.setattr(module, "speed_round", recorded)
    sweep(config(models=(str(model), str(other)), speed_rounds=3))
    first, second = measured[:2]  # unmeasured
    assert first is not second
    assert measured[2:] == [first, second] * 3


def test_a_finished_sweep_answers_nothing_again(
    config: Callable[..., SweepConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are made anew from the answers that are there."""
    settings = config(speed=False)
    rows = sweep(settings)
    (settings.output / "sweep.md").unlink()
    interrupt(monkeypatch, "answers_to", 0)
    assert sweep(settings) == rows
    assert (settings.output / "sweep.md").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keep_ratios": (0.7,)}, "keep_ratios"),
        ({"criteria": ("variance",)}, "criteria"),
        ({"batch_size": 4}, "batch_size 3, not 4"),
        ({"limit": 9}, "limit None, not 9"),
        ({"keep_masses": ()}, "keep_masses"),
        ({"dtype": "bfloat16"}, "computing cpu float32, not cpu bfloat16"),
    ],
    ids=str,
)
def test_other_settings_in_the_same_folder_are_refused(
    config: Callable[..., SweepConfig], changes: dict[str, Any], words: str
) -> None:
    """A folder that holds another sweep is not mixed up with it nor overwritten; the difference is told."""
    settings = config(speed=False)
    settings.output.mkdir()
    module._resume(settings.output / "state.json", module._fingerprint(settings, "cpu float32"))
    before = (settings.output / "state.json").read_bytes()
    with pytest.raises(ResumeError, match="contains a run with other settings") as caught:
        sweep(config(speed=False, **changes))
    assert words in str(caught.value)
    assert (settings.output / "state.json").read_bytes() == before
    assert not (settings.output / "answers").exists()


def test_other_weights_under_the_same_name_are_refused(
    config: Callable[..., SweepConfig], tmp_path: Path
) -> None:
    """A checkpoint that was trained on meanwhile does not go on with the answers of the one before."""
    path = tmp_path / "model.safetensors"
    save_random_model(path, seed=0)
    sweep(config(models=(str(path),), speed=False, limit=3))
    save_random_model(path, seed=1)
    with pytest.raises(ResumeError, match="models"):
        sweep(config(models=(str(path),), speed=False, limit=3))


def test_other_images_under_the_same_name_are_refused(
    config: Callable[..., SweepConfig], folder: Path, tmp_path: Path
) -> None:
    """Nor does a folder that gained an image."""
    shutil.copytree(folder, tmp_path / "data")
    settings = config(data=tmp_path / "data", speed=False, limit=3)
    sweep(settings)
    shutil.copy(folder / "china" / "0.png", tmp_path / "data" / "china" / "new.png")
    with pytest.raises(ResumeError, match="images"):
        sweep(settings)


def test_where_and_how_it_runs_may_change(config: Callable[..., SweepConfig], tmp_path: Path) -> None:
    """The folder may be moved, other workers may read, the reference may be another method."""
    settings = config(speed=False)
    rows = sweep(settings)
    settings.output.rename(tmp_path / "moved")
    again = sweep(config(speed=False, output=tmp_path / "moved", workers=1, reference="mean"))
    assert [row.top1 for row in again] == [row.top1 for row in rows]
    assert {row.reference for row in again} == {None, "mean"}


# What is wrong.


def test_the_last_model_is_checked_before_the_first_works(
    config: Callable[..., SweepConfig], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelt reference does not cost an hour."""
    interrupt(monkeypatch, "answers_to", 0)
    with pytest.raises(ModelError, match=r"the file 'nowhere\.pth' does not exist"):
        sweep(config(models=(str(model), "nowhere.pth")))


def test_the_model_that_lacks_a_method_is_named(
    config: Callable[..., SweepConfig], model: Path, tmp_path: Path
) -> None:
    """One of several may have no life predictor or no queries."""
    other = tmp_path / "other.safetensors"
    save_random_model(other, seed=1)
    for changes, words in (
        ({"criteria": ("life",)}, "the criterion life needs a life predictor"),
        ({"reducers": ("pool",)}, "the reducer pool needs learned queries"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(str(other))}: {words}"):
            sweep(config(models=(str(other), str(model)), reference=None, **changes))


def test_a_reference_that_is_not_swept_is_refused(config: Callable[..., SweepConfig]) -> None:
    """The methods that are there are named; without variance, the first is the reference."""
    with pytest.raises(
        ValueError, match="'mad' must be one of the measured methods: variance, mean, random, merge"
    ):
        sweep(config(reference="mad"))
    assert module._reference(None, [("mean", "drop"), ("variance", "drop")]) == ("variance", "drop")
    assert module._reference(None, [("mean", "fuse"), ("variance", "fuse")]) == ("mean", "fuse")


def test_a_missing_package_is_told_before_any_work(
    config: Callable[..., SweepConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what to install."""
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError):
        sweep(config())
    assert command.sweep(config()) == 1
    assert capsys.readouterr().err == (
        "trimvit sweep: the plots need matplotlib: pip install 'trimvit[train]'\n"
    )
    assert not config().output.exists()


# The command.


def test_the_command_prints_the_table(
    config: Callable[..., SweepConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """With the number of images before it, and where the rest lies behind it."""
    settings = config(speed=False, limit=4)
    assert command.sweep(settings) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"4 images of {settings.data}\n\n| keep_ratio | keep_mass | method ")
    assert out.endswith(f"\n\nplots and figures: {settings.output}\n")


def test_the_command_says_how_to_go_on(
    config: Callable[..., SweepConfig], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted sweep exits with 130; other settings in its folder with 1."""
    interrupt(monkeypatch, "answers_to", 2)
    settings = config(speed=False)
    assert command.sweep(settings) == 130
    assert f"run the same command again to resume from {settings.output}" in capsys.readouterr().err
    assert command.sweep(config(speed=False, batch_size=2)) == 1
    assert f"trimvit sweep: {settings.output} contains a run with other settings" in capsys.readouterr().err
