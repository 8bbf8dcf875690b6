"""Files of labels as people have them: one order of classes comes out, or words that say what is wrong."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.load import ModelError, read_labels

LABELS = ("Äpfel", "golf ball", "тенч")


def write(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(content.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_text_is_read_in_every_unicode_encoding(
    tmp_path: Path, encoding: str, newline: str, end: str
) -> None:
    """With or without a byte-order mark, with any line ends, and blank lines at the end ignored."""
    labels = ("tench", *LABELS)
    text = ("\n".join(labels) + end).replace("\n", newline)
    assert read_labels(write(tmp_path / "labels.txt", text, encoding)) == labels


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_latin_1_is_read_and_told(tmp_path: Path, encoding: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert read_labels(write(tmp_path / "labels.txt", "Äpfel\nBäume\n", encoding)) == ("Äpfel", "Bäume")
    (record,) = caplog.records
    assert "read as Latin-1" in record.getMessage()
    assert "iconv" in record.getMessage()


@pytest.mark.parametrize(
    "content",
    [
        list(LABELS),
        {"0": "Äpfel", "1": "golf ball", "2": "тенч"},
        {"2": "тенч", "0": "Äpfel", "1": "golf ball"},
        {"Äpfel": 0, "тенч": 2, "golf ball": 1},
        {"0": ["n1", "Äpfel"], "1": ["n2", "golf ball"], "2": ["n3", "тенч"]},
        {"id2label": {"0": "Äpfel", "1": "golf ball", "2": "тенч"}, "label2id": {}},
        {"architecture": "vit", "label_names": list(LABELS)},
    ],
)
@pytest.mark.parametrize("name", ["labels.json", "labels.txt", "labels"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_lists_and_maps_are_read(tmp_path: Path, content: Any, name: str, encoding: str) -> None:
    """From index to name, from name to index, ImageNet's pairs, transformers' and timm's config.json."""
    text = json.dumps(content, ensure_ascii=False)
    assert read_labels(write(tmp_path / name, text, encoding)) == LABELS


def test_class_folders_that_are_numbers_are_names(tmp_path: Path) -> None:
    """torchvision's class_to_idx of folders 0, 1 and 10: the values are the indices."""
    path = write(tmp_path / "classes.json", '{"0": 0, "1": 1, "10": 2}')
    assert read_labels(path) == ("0", "1", "10")


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ({"id2label": {"0": 1, "1": 2, "2": 0}}, ("1", "2", "0")),
        ({"id2label": {"0": 10, "1": 2.5, "2": True}}, ("10", "2.5", "true")),
        ({"label2id": {"0": 1, "1": 2, "2": 0}}, ("2", "0", "1")),
        ({"label2id": {"cat": "1", "dog": "0"}}, ("dog", "cat")),
        ({"class_to_idx": {"5": "1", "7": "0"}}, ("7", "5")),
        ({"cat": "1", "dog": "0"}, ("dog", "cat")),
        ({"0": "1", "1": "0"}, ("1", "0")),
    ],
)
def test_numbers_as_names_and_text_as_indices(tmp_path: Path, content: Any, labels: tuple[str, ...]) -> None:
    """The key says whether a map goes from index to name or back, as for transformers: numbers on both sides
    do not."""
    assert read_labels(write(tmp_path / "config.json", json.dumps(content))) == labels


def test_pythons_notation_is_read(tmp_path: Path) -> None:
    """As the file of ImageNet's labels that is copied most often is written."""
    path = write(tmp_path / "imagenet1000.txt", "{0: 'tench, Tinca tinca',\n 1: \"a bird's nest\",}\n")
    assert read_labels(path) == ("tench, Tinca tinca", "a bird's nest")


@pytest.mark.parametrize("sign", [": ", ",", "\t", " ; "])
def test_numbered_lines_are_put_in_their_order(tmp_path: Path, sign: str) -> None:
    path = write(tmp_path / "labels.txt", f"1{sign}dog\n0{sign}cat\n2{sign}cow, brown\n")
    assert read_labels(path) == ("cat", "dog", "cow, brown")


def test_numbers_that_belong_to_names_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.txt", "0 stars\n1 star\n2 stars\n")
    assert read_labels(path) == ("0 stars", "1 star", "2 stars")


def test_labels_that_are_twice_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """ImageNet has two cranes, so they are not refused."""
    with caplog.at_level(logging.WARNING):
        assert read_labels(write(tmp_path / "labels.txt", "crane\ndog\ncrane\n")) == ("crane", "dog", "crane")
    assert "'crane'" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("labels.txt", "", "contains no labels"),
        ("labels.txt", "\n\n", "contains no labels"),
        ("labels.txt", "cat\n\ndog\n", "line 2 of .* is blank"),
        ("labels.txt", "no text\x00 but something else\x07", "not a text file|not readable"),
        ("labels.txt", "cat\ndog\fbird\n", "label 1 has the control character"),
        ("labels.json", r'["cat", "\ud800"]', "label 1 has the control character"),
        ("labels.json", r'{"0": "a\u001b[31m"}', "label 0 has the control character"),
        ("labels.json", "[1, 2]", "label 0 is 1, but must be text"),
        ("labels.json", '["cat", ""]', "label 1 is ''"),
        ("labels.json", '["cat", "dog"', "is not readable JSON"),
        ("labels.json", '"cat"', "neither a list of labels nor a map"),
        ("labels.json", "{}", "contains no labels"),
        ("labels.json", '{"0": "cat", "2": "dog"}', "none for index 1; indices must run from 0 to 1"),
        ("labels.json", '{"1": "cat", "2": "dog"}', "none for index 0"),
        ("labels.json", '{"cat": 0, "dog": 0}', "two labels for index 0: 'cat' and 'dog'"),
        ("labels.json", '{"cat": "dog"}', "the key 'cat', which is not an index"),
        ("labels.json", '{"0": {"name": "cat"}}', "label 0 is"),
        ("labels.json", "[" * 100_000, "is not readable JSON"),
    ],
)
def test_what_is_no_file_of_labels_is_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    """With what is wrong, where, and an example."""
    with pytest.raises(ModelError, match=words) as caught:
        read_labels(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "labels.txt" if kind == "missing" else tmp_path
    with pytest.raises(ModelError, match=r"the label file .* does not exist|cannot be read: Is a directory"):
        read_labels(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=80).map(lambda text: text.encode("utf-16")))
def test_any_bytes_give_labels_or_words(tmp_path: Path, content: bytes) -> None:
    """Nothing that a file can hold is a traceback, and no label is blank."""
    path = tmp_path / "labels"
    path.write_bytes(content)
    try:
        labels = read_labels(path)
    except ModelError:
        return
    assert labels
    assert all(label.strip() for label in labels)
