"""What people write for a model: paths are paths, and the hub's spellings are understood."""

import logging
import os
from pathlib import Path

import pytest

from models.bundled import BUNDLED_MODEL, BUNDLED_MODELS
from models.load.errors import ModelError
from models.load.reference import located

TINY = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "best.ckpt", "x.pth.tar", "a b", "größe.pt", "epoch=3"]
)
@pytest.mark.parametrize("by", ["{}", "local-dir:{}", "file://{}", " {} "])
def test_a_file_that_exists_is_a_path(tmp_path: Path, name: str, by: str) -> None:
    """Of any name, with an ending or without."""
    (tmp_path / name).touch()
    assert located(by.format(tmp_path / name)) == tmp_path / name


def test_paths_are_understood_as_a_shell_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the current folder, with ./ and ~, through links, and a folder as such."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("run").mkdir()
    Path("run/model").touch()
    Path("link").symlink_to("run/model")
    for text in ("run", "./run", "run/model", "link", "~/run/model", "local-dir:~/run"):
        place = located(text)
        assert isinstance(place, Path)
        assert place.exists()


@pytest.mark.parametrize(
    ("reference", "place"),
    [
        (TINY, TINY),
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224"),
        (f"timm/{TINY}", TINY),
        ("timm/some-new-model.x", "hf-hub:timm/some-new-model.x"),
        (f"hf-hub:timm/{TINY}", f"hf-hub:timm/{TINY}"),
        (f"hf_hub:timm/{TINY}", f"hf-hub:timm/{TINY}"),
        ("HF-Hub:somebody/birds@v2", "hf-hub:somebody/birds@v2"),
        ("hf://somebody/birds", "hf-hub:somebody/birds"),
        ("somebody/birds", "hf-hub:somebody/birds"),
        ("https://huggingface.co/somebody/birds", "hf-hub:somebody/birds"),
        ("https://huggingface.co/somebody/birds/", "hf-hub:somebody/birds"),
        ("https://huggingface.co/somebody/birds/tree/main", "hf-hub:somebody/birds"),
        ("https://huggingface.co/somebody/birds/blob/v2/model.safetensors", "hf-hub:somebody/birds@v2"),
        (
            "https://hf.co/somebody/birds/resolve/main/m.safetensors?download=true",
            "hf-hub:somebody/birds",
        ),
        ("huggingface.co/somebody/birds", "hf-hub:somebody/birds"),
        ("hf-hub:https://huggingface.co/somebody/birds", "hf-hub:somebody/birds"),
    ],
)
def test_names_and_the_hubs_spellings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert located(reference) == place


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("", "no model is given"),
        (
            "nowhere/model.safetensors",
            r"the file 'nowhere/model\.safetensors' does not exist. The folder 'nowhere' does",
        ),
        ("./nowhere", "the file or folder './nowhere' does not exist"),
        ("local-dir:nowhere", "the file or folder 'nowhere' does not exist"),
        ("a/b/c", "the file or folder 'a/b/c' does not exist"),
        ("~nobody-of-this-name/x", "the file or folder .* does not exist"),
        ("x" * 5000 + ".pth", "does not exist"),
        ("a\0b.pth", "does not exist"),
        ("https://example.org/model.pth", "is not a model page on .*; download the file"),
        ("https://huggingface.co/models", "is not a model page"),
        ("http://[/x", "is not a valid URL|is not a model page"),
        ("ViT_Tiny_patch16_224", r"timm has no model .*vit_tiny_patch16_224"),
        (
            "vit_tiny_patch16_224.augreg",
            r"no weights 'augreg' of vit_tiny_patch16_224\. Available weights: " r"vit_",
        ),
        ("hf-hub:", "OWNER/NAME"),
    ],
)
def test_what_is_no_model_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=words) as caught:
        located(reference)
    assert "\n" not in str(caught.value)


def test_a_misspelt_path_is_answered_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "model_best.pth.tar").touch()
    (tmp_path / "dangling.pth").symlink_to("gone.pth")
    with pytest.raises(ModelError, match=r"Similar: .*/model_best\.pth\.tar"):
        located(str(tmp_path / "model_bets.pth.tar"))
    with pytest.raises(
        ModelError, match=r"dangling\.pth is a symbolic link to gone\.pth, which does not " r"exist"
    ):
        located(str(tmp_path / "dangling.pth"))


def test_a_folder_called_as_a_model_is_taken_where_it_holds_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And what was chosen is told; ./ means the folder, and the bundled model's name the bundled model."""
    monkeypatch.chdir(tmp_path)
    for name in ("vit_tiny_patch16_224", BUNDLED_MODEL):
        Path(name).mkdir()
    with caplog.at_level(logging.WARNING):
        assert located("vit_tiny_patch16_224") == "vit_tiny_patch16_224"
        assert located("./vit_tiny_patch16_224") == Path("vit_tiny_patch16_224")
        Path("vit_tiny_patch16_224/model.safetensors").touch()
        assert located("vit_tiny_patch16_224") == Path("vit_tiny_patch16_224")
    assert len(caplog.records) == 2
    assert located(BUNDLED_MODEL) != Path(BUNDLED_MODEL)
    assert all(Path(located(name)).is_file() for name in BUNDLED_MODELS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0)
    with pytest.raises(ModelError, match="permission denied"):
        located(str(tmp_path / "shut" / "model.pth"))
