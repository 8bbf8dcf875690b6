"""Whatever happened to the files of a model on their way, it is loaded or refused in a few words."""

import json
import random
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from models.families import UnsupportedModelError
from models.load import Card, ModelError, load, read_labels, save
from models.schedule import Stages
from models.transforms import InputSpec

ARCHITECTURE = "test_vit"
LABELS = ("tench", "English springer", "été")
LONGEST_REFUSAL = 1000  # characters
_BORDERS = (
    b"\0" * 4,
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xfe",
    b"NaN",
    b"-1",
    b'"',
    b"[",
    b"{",
    b"\n",
    b"1e999",
)


def _mutate(data: bytes, draw: random.Random) -> bytes:
    """Flip, overwrite, cut, remove or repeat bytes; every other time near the start, where headers are."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.randrange(min(len(changed), draw.choice((200, len(changed)))) or 1)
        match draw.choice(("flip", "overwrite", "cut", "remove", "repeat")):
            case "flip" if changed:
                changed[place] ^= 1 << draw.randrange(8)
            case "overwrite":
                border = draw.choice(_BORDERS)
                changed[place : place + len(border)] = border
            case "cut":
                del changed[place:]
            case "remove":
                del changed[place : place + draw.choice((1, 2, 16, 200))]
            case _:
                changed[place:place] = changed[place : place + draw.choice((1, 12, 300))] * draw.choice(
                    (1, 2, 50)
                )
    return bytes(changed)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str | None]]:
    """A small network in several forms: what to load, and the architecture to name."""
    folder = tmp_path_factory.mktemp("forms")
    torch.manual_seed(1)
    vit = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=len(LABELS)).eval()
    state = vit.state_dict()
    spec = InputSpec((160, 160), (0.5,) * 3, (0.5,) * 3)
    card = Card(ARCHITECTURE, LABELS, spec, Stages((2, 4)), model_args={"num_classes": len(LABELS)})
    save(folder / "own.safetensors", vit, card)
    torch.save({"state_dict": {f"module.{name}": each for name, each in state.items()}}, folder / "plain.pth")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(LABELS),
        "pretrained_cfg": {"label_names": LABELS, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9},
    }
    (folder / "timm").mkdir()
    (folder / "timm" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(state, folder / "timm" / "model.safetensors")
    return [
        (folder / "own.safetensors", None),
        (folder / "plain.pth", ARCHITECTURE),
        (folder / "old.pt", ARCHITECTURE),
        (folder / "timm", None),
    ]


def _assert_told(error: Exception) -> None:
    assert len(str(error).splitlines()) <= 2, error
    assert len(str(error)) <= LONGEST_REFUSAL, error


@pytest.mark.parametrize(
    "count", [pytest.param(80, id="share"), pytest.param(4000, id="all", marks=pytest.mark.long)]
)
def test_damaged_weights_are_loaded_or_refused(
    forms: list[tuple[Path, str | None]], tmp_path: Path, count: int
) -> None:
    """What loads answers with numbers, a label each; what does not is refused in two lines at most."""
    draw = random.Random(count)
    loaded = refused = 0
    for number in range(count):
        source, architecture = forms[number % len(forms)]
        if source.is_dir():
            target = tmp_path / source.name
            target.mkdir(exist_ok=True)
            for file in source.iterdir():
                data = file.read_bytes()
                spoilt = draw.random() < (0.7 if file.suffix == ".json" else 0.3)
                (target / file.name).write_bytes(_mutate(data, draw) if spoilt else data)
        else:
            target = tmp_path / source.name
            target.write_bytes(_mutate(source.read_bytes(), draw))
        try:
            model = load(str(target), architecture=architecture)
        except (ModelError, UnsupportedModelError, ValueError) as error:
            _assert_told(error)
            refused += 1
            continue
        loaded += 1
        height, width = model.input.size
        with torch.inference_mode():
            logits = model.model.vit(torch.rand(1, 3, height, width))
        assert logits.isfinite().all()
        assert logits.shape == (1, len(model.labels))
    assert loaded > count / 40
    assert refused > count / 10


@pytest.mark.parametrize(
    "count", [pytest.param(500, id="share"), pytest.param(20_000, id="all", marks=pytest.mark.long)]
)
def test_damaged_label_files_are_read_or_refused(tmp_path: Path, count: int) -> None:
    """Labels that are read have no control characters; what is refused is so in two lines at most."""
    draw = random.Random(count)
    path = tmp_path / "labels.txt"
    texts = [
        "\n".join(LABELS) + "\n",
        json.dumps(LABELS),
        json.dumps(dict(enumerate(LABELS))),
        json.dumps({name: index for index, name in enumerate(LABELS)}),
        json.dumps({str(index): [f"n0{index}", name] for index, name in enumerate(LABELS)}),
    ]
    read = refused = 0
    for _ in range(count):
        coding = draw.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
        path.write_bytes(_mutate(draw.choice(texts).encode(coding), draw))
        try:
            labels = read_labels(path)
        except ModelError as error:
            _assert_told(error)
            refused += 1
            continue
        read += 1
        assert all(label and label.strip() == label for label in labels)
        assert not any(ord(sign) < 32 and sign != "\t" for label in labels for sign in label)
        assert all(label.encode() for label in labels)
    assert read > count / 10
    assert refused > count / 10
