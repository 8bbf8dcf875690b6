"""`trimvit classify`: the answers of the server without one, for people and for programs."""

import base64
import io
import json
import os
import pty
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from app.commands.classify_config import ClassifyConfig
from app.http.schemas import ImageResult
from app.inference.options import ImageOptions
from models.load import save
from tests.app.commands.conftest import ARGUMENTS, CARD, LABELS, Trimvit
from tests.app.fakes import encoded, picture


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder with three images, one in a sub-folder, and what is no image."""
    folder = tmp_path / "photographs"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(encoded(picture(), "JPEG"))
    (folder / "deep" / "b.png").write_bytes(encoded(picture(colour=(10, 250, 90))))
    (folder / "c, d.webp").write_bytes(encoded(picture(colour=(90, 20, 200)), "WEBP"))
    (folder / "notes.txt").write_text("not a photograph")
    return folder


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_of_json_has_the_form_of_a_servers_result(
    trimvit: Trimvit, tiny_model: Path, photographs: Path
) -> None:
    """A program that reads one reads the other."""
    code, out, err = trimvit(
        "classify", photographs / "a.jpg", "--model", tiny_model, "--json", "--keep-ratio", 0.5, "--top-k", 2
    )
    (line,) = lines(out)
    assert (code, err) == (0, "")
    assert (line.pop("photograph"), line.pop("model")) == (str(photographs / "a.jpg"), "pond")
    result = ImageResult.model_validate(line)
    assert line.keys() == ImageResult.model_fields.keys() - {"cached", "mask", "warnings"}
    assert result.patches.model_dump() == {"total": 6, "kept": 2, "per_stage": [3, 2], "grid": (2, 3)}
    assert (result.keep_ratio, result.criterion, result.reducer, result.runs) == (0.5, "mad", "drop", 1)
    assert [label.label for label in result.labels] == [LABELS[label.index] for label in result.labels]
    assert len(result.labels) == 2
    assert result.labels[0].score >= result.labels[1].score


def test_a_folder_stands_for_its_images_by_path(
    trimvit: Trimvit, tiny_model: Path, photographs: Path
) -> None:
    """With those in sub-folders, in order, over several batches; other files are named and change nothing."""
    code, out, err = trimvit("classify", photographs, "--model", tiny_model, "--json", "--batch-size", 2)
    expected = [photographs / name for name in ("a.jpg", "c, d.webp", "deep/b.png")]
    assert code == 0
    assert err == f"trimvit classify: 1 skipped in {photographs}: notes.txt (no image)\n"
    assert [line["photograph"] for line in lines(out)] == [str(path) for path in expected]


def test_an_image_comes_from_standard_input(
    trimvit: Trimvit, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dash stands for it, among files or alone; twice it cannot be meant."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(encoded())))
    code, out, _ = trimvit("classify", "-", "--model", tiny_model, "--json")
    assert code == 0
    assert lines(out)[0]["photograph"] == "-"
    code, out, err = trimvit("classify", "-", "-", "--model", tiny_model)
    assert (code, out) == (2, "")
    assert "standard input (-) can be read once" in err


def test_what_cannot_be_read_is_told_and_the_others_are_answered(
    trimvit: Trimvit, tiny_model: Path, photographs: Path
) -> None:
    """A line of standard error and of JSON each, exit code 1, and the order is kept."""
    junk, missing = photographs / "junk.jpg", photographs / "missing.jpg"
    junk.write_text("junk")
    arguments = [junk, photographs / "a.jpg", missing, photographs / "deep" / "b.png"]
    code, out, err = trimvit("classify", *arguments, "--model", tiny_model, "--json")
    assert code == 1
    assert [("labels" in line, "problem" in line) for line in lines(out)] == [
        (False, True), (True, False), (False, True), (True, False),
    ]  # fmt: skip
    assert lines(out)[0]["problem"]["type"] == "urn:trimvit:problem:undecodable-image"  # type: ignore[index]
    assert f"trimvit classify: {junk}: the bytes are not an image in a known format" in err
    assert f"trimvit classify: {missing}: it cannot be read: No such file or directory" in err
    assert "trimvit classify: 2 of 4 photographs failed" in err


def test_the_table_has_a_row_for_each_label(trimvit: Trimvit, tiny_model: Path, photographs: Path) -> None:
    """A head, and for each photograph its name once, what was kept, and its labels."""
    code, out, _ = trimvit("classify", photographs, "--model", tiny_model, "--keep-ratio", 0.5, "--top-k", 2)
    head, *rows = out.splitlines()
    assert code == 0
    assert head.split()[0] == "photograph"
    assert len(rows) == 6
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert "0.5" in first
        assert "2 of 6" in first
        assert second.startswith(" ")
        assert first.endswith(LABELS)
        assert second.endswith(LABELS)
    assert "a.jpg" in rows[0]


def test_what_is_saved_is_what_the_model_saw(
    trimvit: Trimvit, tiny_model: Path, photographs: Path, tmp_path: Path
) -> None:
    """With the pruned patches dimmed; after every stage, side by side."""
    seen, pruned, stages = (tmp_path / f"{name}.png" for name in ("seen", "pruned", "stages"))
    common = ["classify", photographs / "a.jpg", "--model", tiny_model, "--json", "--mask"]
    assert trimvit(*common, seen)[0] == 0
    code, out, _ = trimvit(*common, pruned, "--keep-ratio", 0.5, "--mask-format", "grid")
    assert code == 0
    assert trimvit(*common, stages, "--keep-ratio", 0.5, "--mask-stages")[0] == 0
    (line,) = lines(out)
    assert line["mask_picture"] == str(pruned)
    (mask,) = line["mask"]  # type: ignore[misc]
    cells = np.array(mask["grid"]).repeat(16, axis=0).repeat(16, axis=1)
    whole, dim = np.asarray(Image.open(seen)), np.asarray(Image.open(pruned))
    assert whole.shape == (32, 48, 3)
    assert cells.sum() == 2 * 16 * 16
    assert (dim[cells == 1] == whole[cells == 1]).all()
    assert (dim[cells == 0] == (whole[cells == 0] * 0.25).astype(np.uint8)).all()
    both = np.asarray(Image.open(stages))
    assert both.shape == (32, 96, 3)
    assert (both[:, 48:] == dim).all()
    assert not (both[:, :48] == dim).all()


def test_pictures_of_several_photographs_go_into_a_folder(
    trimvit: Trimvit, tiny_model: Path, photographs: Path, tmp_path: Path
) -> None:
    """Under their own names, and none over another."""
    masks = tmp_path / "masks"
    (photographs / "a.png").write_bytes(encoded())
    code, _, _ = trimvit(
        "classify", photographs, photographs / "a.jpg", "--model", tiny_model, "--mask", masks
    )
    assert code == 0
    found = sorted(str(path.relative_to(masks)) for path in masks.rglob("*.png"))
    assert found == ["a-2.png", "a-3.png", "a.png", "c, d.png", "deep/b.png"]


def test_a_cascade_and_its_absence_are_told(trimvit: Trimvit, tiny_model: Path, photographs: Path) -> None:
    """In the words of HTTP."""
    code, out, err = trimvit("classify", photographs, "--model", tiny_model, "--cascade")
    assert (code, out) == (2, "")
    assert "this model has no cascade" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--keep-ratio", "2"], "--keep-ratio must be a number above 0 and at most 1, such as 0.5; got '2'"),
        (["--top-k", "0"], "--top-k must be a whole number from 1 to 1000, such as 5; got '0'"),
        (["--criterion", "max"], "--criterion must be 'variance', 'mad', "),
        (
            ["--keep-ratio", "0.5", "--compute", "0.5"],
            "give only one of keep_ratio, compute, keep_mass, cascade; got keep_ratio and compute",
        ),
        (["--cascade", "--reducer", "fuse"], "leave out reducer, or cascade"),
        (["--compute", "0.0001"], "compute 0.0001 is too low"),
        (["--mask-format", "grid"], "--mask-format only applies to --json"),
        (["--mask-stages"], "--mask-stages needs --mask or --mask-format"),
        (["--mask", "one.png"], "--mask one.png is a file, but there are 3 photographs; give a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_exits_with_2(
    trimvit: Trimvit, tiny_model: Path, photographs: Path, flags: list[str], words: str
) -> None:
    """Nothing is printed but what is wrong and what is allowed."""
    code, out, err = trimvit("classify", photographs, "--model", tiny_model, *flags)
    assert (code, out) == (2, "")
    assert words in err


def test_a_picture_needs_an_ending_that_is_one(
    trimvit: Trimvit, tiny_model: Path, photographs: Path, tmp_path: Path
) -> None:
    """What Pillow would stumble over is told before anything is computed."""
    (tmp_path / "plain").write_text("")
    for target, words in (("mask.txt", "must end with .png"), ("plain", "is a file without an ending")):
        code, _, err = trimvit(
            "classify", photographs / "a.jpg", "--model", tiny_model, "--mask", tmp_path / target
        )
        assert code == 2
        assert words in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "no_such_model"], "timm has no model 'no_such_model'"),
        (["--model", "gone.safetensors"], "the file 'gone.safetensors' does not exist"),
        (["--labels", "gone.txt"], "the label file 'gone.txt' does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_model_that_cannot_be_had_exits_with_1(
    trimvit: Trimvit, tiny_model: Path, photographs: Path, flags: list[str], words: str
) -> None:
    """In a line, without a trace."""
    code, out, err = trimvit("classify", photographs, "--model", tiny_model, *flags)
    assert (code, out) == (1, "")
    assert words in err
    assert "Traceback" not in err


def test_an_empty_folder_is_told(trimvit: Trimvit, tmp_path: Path) -> None:
    """Before the model is loaded."""
    code, _, err = trimvit("classify", tmp_path)
    assert code == 1
    assert err == f"trimvit classify: there are no images in {tmp_path}\n"


def test_settings_of_a_server_in_the_environment_change_nothing(
    trimvit: Trimvit, tiny_model: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are a server's."""
    monkeypatch.setenv("TRIMVIT_DEFAULT_KEEP_RATIO", "0.3")
    _, out, _ = trimvit("classify", photographs / "a.jpg", "--model", tiny_model, "--json")
    assert lines(out)[0]["keep_ratio"] == 1


def test_every_option_of_a_request_is_there() -> None:
    """But those that mean something to a server only; which of several models is meant is one of them."""
    of_a_server = {"deadline_ms", "errors", "min_keep_ratio", "model", "priority"}
    assert ImageOptions.model_fields.keys() - of_a_server <= ClassifyConfig.model_fields.keys()
    for name in ImageOptions.model_fields.keys() - of_a_server - {"mask", "mask_stages"}:
        ours, theirs = ClassifyConfig.model_fields[name], ImageOptions.model_fields[name]
        assert (ours.default, ours.metadata) == (theirs.default, theirs.metadata), name


def test_any_file_can_be_named(trimvit: Trimvit, tiny_model: Path, tmp_path: Path) -> None:
    """Commas, quotes, brackets and backslashes are part of a name, and a number is one too."""
    names = ['say "a, b".png', "[1,2].png", "back\\slash.png", "1.0", "null", "ünïcode.png"]
    for name in names:
        (tmp_path / name).write_bytes(encoded())
    code, out, _ = trimvit("classify", *(tmp_path / name for name in names), "--model", tiny_model, "--json")
    assert code == 0
    assert [line["photograph"] for line in lines(out)] == [str(tmp_path / name) for name in names]


# Folders as people have them.


def test_every_image_of_a_folder_is_tried(trimvit: Trimvit, tiny_model: Path, tmp_path: Path) -> None:
    """Whatever its ending; what is of another format is refused by name, and hidden files are not there."""
    (tmp_path / "a.jpg").write_bytes(encoded(picture(), "JPEG"))
    (tmp_path / "b.MPO").write_bytes(encoded(picture(), "JPEG"))
    (tmp_path / "c.HEIC").write_bytes(encoded(picture(), "HEIF"))
    (tmp_path / "d.jpf").write_bytes(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40))
    (tmp_path / "IMG_5").write_bytes(encoded())
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(40))
    for hidden in (".DS_Store", "._a.jpg", "Thumbs.db"):
        (tmp_path / hidden).write_bytes(b"junk")
    code, out, err = trimvit("classify", tmp_path, "--model", tiny_model, "--json")
    assert code == 1
    assert [(Path(str(line["photograph"])).name, "labels" in line) for line in lines(out)] == [
        ("IMG_5", True), ("a.jpg", True), ("b.MPO", True), ("c.HEIC", True), ("d.jpf", False),
    ]  # fmt: skip
    told = err.splitlines()
    assert told[0] == f"trimvit classify: 1 skipped in {tmp_path}: film.mp4 (no image)"
    assert f"{tmp_path}/d.jpf: the image is JPEG2000; allowed are" in told[1]
    assert told[2] == "trimvit classify: 1 of 5 photographs failed"


def test_a_folder_without_images_costs_the_others_nothing(
    trimvit: Trimvit, tiny_model: Path, photographs: Path, tmp_path: Path
) -> None:
    """They are answered, and the exit code tells."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "film.mp4").write_bytes(b"")
    arguments = [tmp_path / "empty", photographs / "a.jpg"]
    code, out, err = trimvit("classify", *arguments, "--model", tiny_model, "--json")
    assert code == 1
    assert len(lines(out)) == 1
    assert f"there are no images in {tmp_path}/empty" in err
    assert "film.mp4 (no image)" in err


def test_names_of_any_bytes_are_printed(trimvit: Trimvit, tiny_model: Path, tmp_path: Path) -> None:
    """In the table, in JSON that every parser takes, and in the names of masks."""
    names = [b"caf\xe9.png", b"two\nlines.png", b"\x1b[2J.png", "naïve.png".encode()]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(encoded())
    code, out, _ = trimvit("classify", tmp_path, "--model", tiny_model, "--top-k", 1)
    assert code == 0
    assert len(out.splitlines()) == 1 + len(names)
    assert "caf\\xe9.png" in out
    assert "\x1b" not in out
    masks = tmp_path / "masks"
    code, out, _ = trimvit("classify", tmp_path, "--model", tiny_model, "--json", "--mask", masks)
    assert code == 0
    found = {os.fsencode(str(line["photograph"])): line for line in lines(out)}
    out.encode()
    assert len(found) == len(names)
    odd = found[os.fsencode(tmp_path) + "/caf\ufffd.png".encode()]
    assert base64.b64decode(str(odd["photograph_base64"])) == os.fsencode(tmp_path) + b"/caf\xe9.png"
    assert sum("photograph_base64" in line for line in found.values()) == 1
    assert (masks / os.fsdecode(b"caf\xe9.png")).is_file()


def test_a_broken_name_in_an_error_is_spelt_out(trimvit: Trimvit, tiny_model: Path, tmp_path: Path) -> None:
    """One line stays one line."""
    path = tmp_path / "two\nlines.png"
    path.write_bytes(b"junk")
    code, _, err = trimvit("classify", path, "--model", tiny_model)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "two\\nlines.png: the bytes are not an image" in err


@pytest.mark.parametrize(
    ("operand", "words"),
    [
        ("https://example.org/cat.jpg", "it is a URL, and URLs are not downloaded; use curl -s URL |"),
        ("file:///tmp/cat.jpg", "it is a URL; give the path of the file"),
        ("data:image/png;base64,AAAA", "it is a data URL"),
        ("*.nothing", "no file matches *.nothing"),
        ("x" * 5000, "it cannot be read: File name too long"),
    ],
    ids=["https", "file", "data", "pattern", "long"],
)
def test_what_is_no_path_is_told(
    trimvit: Trimvit, tiny_model: Path, photographs: Path, operand: str, words: str
) -> None:
    """And the others are answered."""
    code, out, err = trimvit("classify", operand, photographs / "a.jpg", "--model", tiny_model, "--json")
    assert code == 1
    assert ["labels" in line for line in lines(out)] == [False, True]
    assert words in err


def test_patterns_are_understood_where_the_shell_does_not(
    trimvit: Trimvit, tiny_model: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In quotes, and with folders of any depth."""
    monkeypatch.chdir(photographs)
    code, out, _ = trimvit("classify", "*.jpg", "**/*.png", "--model", tiny_model, "--json")
    assert code == 0
    assert [line["photograph"] for line in lines(out)] == ["a.jpg", "deep/b.png"]


def test_a_file_that_is_named_twice_is_answered_twice(
    trimvit: Trimvit, tiny_model: Path, photographs: Path
) -> None:
    """A line for each name that was typed."""
    code, out, _ = trimvit("classify", *[photographs / "a.jpg"] * 2, "--model", tiny_model, "--json")
    assert code == 0
    assert len(lines(out)) == 2


def test_an_empty_name_is_wrong_usage(trimvit: Trimvit, tiny_model: Path) -> None:
    """As a path it would be the folder one is in."""
    code, out, err = trimvit("classify", "", "--model", tiny_model)
    assert (code, out) == (2, "")
    assert "a PHOTO has an empty name; check whether a shell variable is not set" in err


def test_standard_input_without_an_image_is_told(
    trimvit: Trimvit, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty, or a terminal, which would be waited for."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    code, _, err = trimvit("classify", "-", "--model", tiny_model)
    assert code == 1
    assert "-: the image is empty (0 bytes)" in err
    _, terminal = pty.openpty()
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code, _, err = trimvit("classify", "-", "--model", tiny_model)
    assert code == 2
    assert "standard input (-) is the terminal" in err


def test_a_mask_never_replaces_a_photograph(trimvit: Trimvit, tiny_model: Path, tmp_path: Path) -> None:
    """Neither as the file that is named, nor in the photographs' own folder."""
    photograph = tmp_path / "a.png"
    photograph.write_bytes(encoded())
    before = photograph.read_bytes()
    code, _, err = trimvit("classify", photograph, "--model", tiny_model, "--mask", photograph)
    assert code == 2
    assert "is the photograph itself; give another file" in err
    assert trimvit("classify", tmp_path, "--model", tiny_model, "--mask", tmp_path)[0] == 0
    assert photograph.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a-2.png"}


def test_a_mask_that_cannot_be_written_is_told_before_anything_is_computed(
    trimvit: Trimvit, photographs: Path
) -> None:
    """Below a file, and where the system has no room for files; a folder that is not there is made."""
    for target in (photographs / "a.jpg" / "masks", Path("/proc/masks")):
        code, out, err = trimvit("classify", photographs, "--model", "gone.safetensors", "--mask", target)
        assert (code, out) == (2, "")
        assert f"cannot write --mask {target}: " in err


def test_a_film_is_not_read_whole(trimvit: Trimvit, tiny_model: Path, tmp_path: Path) -> None:
    """A file of many gigabytes is refused by its size."""
    with (tmp_path / "film.mp4").open("wb") as file:
        file.truncate(50 * 2**30)
    code, _, err = trimvit("classify", tmp_path / "film.mp4", "--model", tiny_model)
    assert code == 1
    assert "film.mp4: the file has 53687091200 bytes; at most 536870912 are read" in err


def test_scores_that_are_no_numbers_are_told(trimvit: Trimvit, tmp_path: Path) -> None:
    """A network that overflows on a bright photograph, though not on noise, gives no label and no NaN."""
    torch.manual_seed(3)
    vit = timm.create_model(CARD.architecture, **ARGUMENTS)
    with torch.no_grad():
        vit.patch_embed.proj.weight.fill_(1e36)
    path = tmp_path / "huge.safetensors"
    save(path, vit, CARD)
    bright = tmp_path / "bright.png"
    bright.write_bytes(encoded(picture(colour=(255, 255, 255))))
    code, out, err = trimvit("classify", bright, "--model", path, "--dtype", "float32", "--json")
    assert code == 1
    assert "NaN" not in out
    assert "are not finite numbers: huge overflows in float32" in json.loads(out)["problem"]["detail"]
    assert "are not finite numbers" in err
