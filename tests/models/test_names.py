"""Paths in a line on a terminal."""

import os

import pytest

from models.names import in_words, shown


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("täglich ü/猫.jpg", "täglich ü/猫.jpg"),
        (os.fsdecode(b"caf\xe9.jpg"), "caf\\xe9.jpg"),
        ("a\nb\t\x1b[31m\u202e.jpg", "a\\nb\\t\\x1b[31m\\u202e.jpg"),
    ],
)
def test_what_cannot_be_printed_is_spelt_out(path: str, line: str) -> None:
    """And the line can be written anywhere that takes UTF-8."""
    assert shown(path) == line
    line.encode()


def test_an_error_of_the_system_is_told_without_its_number() -> None:
    """With the file, where there is one; other errors in their own words."""
    assert in_words(FileNotFoundError(2, "No such file or directory", "a\nb")) == (
        "a\\nb: No such file or directory"
    )
    assert in_words(OSError(28, "No space left on device")) == "No space left on device"
    assert in_words(ValueError("odd")) == "odd"
