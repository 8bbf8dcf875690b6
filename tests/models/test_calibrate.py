"""Fitting a cascade on photographs without labels, and the command that does it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.cascade import Cascade, fit_margin
from models.load import Card, input_spec_of, load, save
from models.schedule import UNPRUNED, Pruning, default_stages
from models.training import command
from models.training.calibrate import Candidate, calibrate, table
from models.training.config import CalibrateConfig
from models.training.data import Photographs, spread_samples, unlabelled
from models.training.loading import Batches, BrokenImages, evaluation_batches
from models.transforms import InputSpec, to_pixels

SPEC = InputSpec((16, 24), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LABELS = ("amber", "blue", "coral", "dark")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures of noise over a colour, in the folder itself and in sub-folders of two depths."""
    folder = tmp_path_factory.mktemp("unlabelled")
    (folder / "more" / "deep").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(40):
        colour = generator.integers(0, 256, 3)
        noise = colour + generator.normal(0, 60, (50, 60, 3))
        place = (folder, folder / "more", folder / "more" / "deep")[index % 3]
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(place / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least of timm's ViTs with a fixed input size, with random weights, meant for `mean` and `fuse`."""
    torch.manual_seed(0)
    vit = timm.create_model("test_vit3", num_classes=4, img_size=48)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    card = Card(
        architecture="test_vit3",
        labels=LABELS,
        input=input_spec_of(vit),
        stages=default_stages(len(vit.blocks), "all"),
        criterion="mean",
        reducer="fuse",
        model_args={"num_classes": 4, "img_size": 48},
        origin={"epochs": 3},
    )
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    save(path, vit, card)
    return path


@pytest.fixture
def config(pictures: Path, model: Path, tmp_path: Path) -> Callable[..., CalibrateConfig]:
    """For an agreement that 40 images can vouch for."""

    def make(**changes: Any) -> CalibrateConfig:
        settings: dict[str, Any] = {
            "data": pictures,
            "output": tmp_path / "cascade.safetensors",
            "model": str(model),
            "agreement": 0.9,
            "keep_ratios": (0.7, 0.3, 0.5),
            "batch_size": 7,
            "device": "cpu",
            "dtype": "float32",
            "workers": 0,
        }
        return CalibrateConfig(**{**settings, **changes})

    return make


# The photographs.


def batches_of(folder: Path, limit: int | None) -> Batches:
    samples = spread_samples(unlabelled(folder)[0], limit)
    return evaluation_batches(samples, SPEC, BrokenImages("stop"), batch_size=16, workers=0)


def test_images_are_found_in_all_sub_folders_by_path(tmp_path: Path) -> None:
    """By their endings, whatever their case, in the order of their paths; other files are named."""
    for name in ("b.png", "a/z.JPG", "a/b/c.jpeg", "c.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), "red").save(tmp_path / name)
    for name in ("notes.txt", "a/png", "a/thumbs.db"):
        (tmp_path / name).write_text("no image")
    samples, (remark,) = unlabelled(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path, _ in samples]
    assert names == ["a/b/c.jpeg", "a/z.JPG", "b.png", "c.webp"]
    assert remark == f"2 skipped in {tmp_path}: a/png (no image), notes.txt (no image)"


def test_they_are_seen_as_in_serving(pictures: Path) -> None:
    """Every image once, preprocessed by the one preprocessing there is."""
    batches = [batch.pixels for batch in batches_of(pictures, limit=None)]
    assert [len(batch) for batch in batches] == [16, 16, 8]
    files = sorted(pictures.rglob("*.png"))
    for pixels, file in zip(np.concatenate(batches), files, strict=True):
        assert np.array_equal(pixels, to_pixels(Image.open(file), SPEC))


def test_a_limit_spreads_over_them(pictures: Path) -> None:
    """Four of forty are every tenth."""
    (batch,) = batches_of(pictures, limit=4)
    whole = Photographs(unlabelled(pictures)[0], SPEC)
    assert np.array_equal(batch.pixels, np.stack([whole[place].pixels for place in (0, 10, 20, 30)]))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    """With the endings that are looked for."""
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"there are no images in .* \(looked for .*\.jpg, "):
        unlabelled(tmp_path)


# Calibrating.


def test_the_model_is_written_with_the_cheapest_cascade(
    config: Callable[..., CalibrateConfig], model: Path
) -> None:
    """It loads with that cascade, and all else is as it was, to the last bit of the weights."""
    settings = config()
    calibration = calibrate(settings)
    before, after = load(str(model)), load(str(settings.output))
    assert before.cascade is None
    assert after.cascade == calibration.chosen.cascade
    assert after.cascade.first == calibration.candidates[0].cascade.first
    assert after.cascade.dtype == "float32"
    assert (after.labels, after.input, after.card.origin) == (before.labels, before.input, before.card.origin)
    assert after.method == before.method
    weights = after.model.vit.state_dict()
    for name, tensor in before.model.vit.state_dict().items():
        assert torch.equal(weights[name], tensor), name


def test_candidates_come_by_their_cost(config: Callable[..., CalibrateConfig]) -> None:
    """Every ratio with every method, merge once, the cheapest first, each compared on half of the images; the
    chosen one is fitted on the other half."""
    calibration = calibrate(config(criteria=("variance", "mean"), reducers=("drop", "merge")))
    candidates = calibration.candidates
    cascades = [candidate.cascade for candidate in candidates]
    assert [cascade.compute for cascade in cascades] == sorted(cascade.compute for cascade in cascades)
    methods = {("variance", "drop"), ("mean", "drop"), ("mean", "merge")}
    assert {(cascade.keep_ratio, cascade.criterion, cascade.reducer) for cascade in cascades} == {
        (ratio, *method) for ratio in (0.7, 0.5, 0.3) for method in methods
    }
    assert len(cascades) == 9
    assert {(cascade.images, cascade.agreement) for cascade in cascades} == {(20, 0.9)}
    assert calibration.chosen.cascade.images == 20
    # The cheapest is not simply the least ratio: what is run again counts.
    assert len({candidate.unsure for candidate in candidates}) > 1


def test_without_a_method_it_is_the_checkpoints(config: Callable[..., CalibrateConfig]) -> None:
    """What the checkpoint is meant for."""
    cascades = [candidate.cascade for candidate in calibrate(config()).candidates]
    assert {(cascade.criterion, cascade.reducer) for cascade in cascades} == {("mean", "fuse")}


def test_the_margin_is_fitted_on_answers_taken_one_by_one(
    config: Callable[..., CalibrateConfig], model: Path, pictures: Path
) -> None:
    """The margin and the share run again are those of images that are classified by themselves."""
    candidate = calibrate(config(keep_ratios=(0.3,), criteria=("mad",), reducers=("drop",))).chosen
    loaded = load(str(model))
    mean, std = np.array(loaded.input.mean), np.array(loaded.input.std)
    margins, agrees = [], []
    for file in sorted(pictures.rglob("*.png")):
        pixels = (to_pixels(Image.open(file), loaded.input) / 255 - mean) / std
        inputs = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        with torch.inference_mode():
            whole = loaded.model(inputs, [UNPRUNED]).logits.argmax()
            scores = loaded.model(inputs, [Pruning(0.3, "mad")]).logits.softmax(1).sort().values[0]
            agrees.append(loaded.model(inputs, [Pruning(0.3, "mad")]).logits.argmax() == whole)
        margins.append(float(scores[-1] - scores[-2]))
    margin, agree = np.array(margins), np.array(agrees)
    assert 0 < agree.sum() < 40
    want = fit_margin(margin, agree, 0.9)
    assert candidate.cascade.margin == pytest.approx(want, abs=1e-4)
    assert candidate.unsure == pytest.approx((margin <= want).mean(), abs=0.03)


def test_the_table_by_hand() -> None:
    """One line for each candidate."""
    cascade = Cascade(0.5, "mad", "fuse", 0.12345, 0.99, 300, 0.6789)
    assert table([Candidate(cascade, 0.2)]).splitlines() == [
        "| keep_ratio | method   | margin | run again % | compute |",
        "|------------|----------|--------|-------------|---------|",
        "| 0.5        | mad+fuse | 0.1235 | 20.0        | 0.679   |",
    ]


@pytest.mark.parametrize(
    "wrong",
    [{"agreement": 1.0}, {"agreement": 0.0}, {"keep_ratios": ()}, {"criteria": ()}, {"margin": 0.1}],
    ids=str,
)
def test_settings_are_checked(config: Callable[..., CalibrateConfig], wrong: dict[str, Any]) -> None:
    """No number of images can promise full agreement."""
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        config(**wrong)


# The command.


def test_the_command_tells_what_there_was_and_what_was_chosen(
    config: Callable[..., CalibrateConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """The candidates, then the cheapest in words."""
    settings = config()
    assert command.calibrate(settings) == 0
    out = capsys.readouterr().out
    cascade = load(str(settings.output)).cascade
    assert cascade is not None
    assert out.startswith("| keep_ratio | method    | margin | run again % | compute |\n")
    first = out.splitlines()[2].split("|")[1:-1]
    assert [cell.strip() for cell in first[:2]] == [f"{cascade.keep_ratio:g}", "mean+fuse"]
    assert (
        f"\n\nfitted on 20 images for an agreement of 0.9; {settings.output} runs each image at keep ratio "
        f"{cascade.keep_ratio:g}, and again without pruning if the margin is at most {cascade.margin:.4f}: "
    ) in out
    assert out.endswith(f"at a compute of {cascade.compute:.3f}\n")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"agreement": 0.995},
            "20 images are too few to promise an agreement of 0.995: at least 199 are needed; "
            "of 40 images, half are used to choose among 3 first runs\n",
        ),
        (
            {"limit": 5, "keep_ratios": (0.3,)},
            "5 images are too few to promise an agreement of 0.9: at least 9 are needed\n",
        ),
        ({"model": "nowhere.safetensors"}, "the file 'nowhere.safetensors' does not exist.\n"),
    ],
    ids=["too few", "limited to too few", "no model"],
)
def test_the_command_says_what_is_wrong(
    config: Callable[..., CalibrateConfig],
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    words: str,
) -> None:
    """A line, exit code 1, and no file."""
    settings = config(**changes)
    assert command.calibrate(settings) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.endswith(f"trimvit calibrate: {words}")
    assert not settings.output.exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_calibrating_changes_no_weight(
    config: Callable[..., CalibrateConfig], model: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """They keep their values, whatever dtype they came in, and take no more room."""
    with safe_open(model, framework="pt") as file:
        header = file.metadata()
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (tensor.float() + 0.01 * torch.randn(tensor.shape, generator=generator)).to(dtype)
        for name, tensor in load_file(model).items()
    }
    start = tmp_path / "start.safetensors"
    save_file(tensors, start, metadata=header)
    calibrate(config(model=str(start), limit=20, agreement=0.8, keep_ratios=(0.7,)))
    written = load_file(config().output)
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert written[name].dtype == dtype, name
        assert torch.equal(written[name], tensor), name


def test_the_command_wants_images(
    config: Callable[..., CalibrateConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An empty folder, or a misspelt one, has none."""
    assert command.calibrate(config(data=tmp_path / "nowhere")) == 1
    told = capsys.readouterr().err
    assert told == f"trimvit calibrate: the folder {tmp_path / 'nowhere'} does not exist\n"
    assert not config().output.exists()
