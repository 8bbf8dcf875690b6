"""`trimvit embed`: the vectors of a server's /v1/embed, in a file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.app.commands.conftest import Trimvit
from tests.app.fakes import encoded, picture


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder with two images and a file that only begins as one."""
    folder = tmp_path / "photographs"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(encoded(picture(), "JPEG"))
    (folder / "cut.png").write_bytes(encoded()[:60])
    (folder / "deep" / "b.png").write_bytes(encoded(picture(colour=(10, 250, 90))))
    return folder


def read(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    return np.load(path), json.loads(path.with_suffix(".json").read_text())


def test_every_photograph_that_can_be_read_has_a_row(
    trimvit: Trimvit, tiny_model: Path, photographs: Path, tmp_path: Path
) -> None:
    """In the order of their names; what cannot be read is told, and the exit code says so."""
    output = tmp_path / "features.npy"
    code, out, err = trimvit(
        "embed",
        photographs,
        "--model",
        tiny_model,
        "--output",
        output,
        "--keep-ratio",
        0.5,
        "--batch-size",
        2,
    )
    vectors, about = read(output)
    assert code == 1
    assert out == f"2 vectors of 66 features in {output}\n"
    assert "cut.png: " in err
    assert "1 of 3 photographs have no vector" in err
    assert (vectors.shape, vectors.dtype) == ((2, 66), np.float32)
    assert about == {
        "model": "pond",
        "options": {"keep_ratio": 0.5},
        "photographs": [str(photographs / "a.jpg"), str(photographs / "deep/b.png")],
    }
    assert not np.array_equal(vectors[0], vectors[1])


def test_a_vector_does_not_depend_on_its_batch_and_may_have_length_one(
    trimvit: Trimvit, tiny_model: Path, photographs: Path, tmp_path: Path
) -> None:
    found = []
    for flags in ((), ("--batch-size", 1), ("--normalize",)):
        output = tmp_path / "features.npy"
        code, _, _ = trimvit(
            "embed",
            photographs / "a.jpg",
            photographs / "deep",
            "--model",
            tiny_model,
            "--output",
            output,
            *flags,
        )
        assert code == 0
        found.append(read(output)[0])
    plain, alone, unit = found
    assert plain == pytest.approx(alone, rel=1e-5, abs=1e-6)
    assert np.linalg.norm(unit, axis=1) == pytest.approx([1, 1], rel=1e-6)
    assert unit == pytest.approx(plain / np.linalg.norm(plain, axis=1, keepdims=True), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--output"),
        (("--output", "features.txt"), "must end in .npy, such as features.npy; got features.txt"),
        (("--output", "nowhere/f.npy"), "the folder nowhere of --output does not exist"),
        (("--output", "f.npy", "--keep-ratio", 0.5, "--compute", 0.5), "only one of"),
        (("--output", "f.npy", "--cascade"), "this model has no cascade"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_told(
    trimvit: Trimvit, tiny_model: Path, photographs: Path, flags: tuple[object, ...], words: str
) -> None:
    code, out, err = trimvit("embed", photographs / "a.jpg", "--model", tiny_model, *flags)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") <= 2
