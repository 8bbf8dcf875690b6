"""What is read from and written to a client's shared memory, and what is no shared memory."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidValue
from app.http.regions import memory

Make = Callable[..., str]


def path_of(key: str) -> Path:
    return memory.FOLDER / key.removeprefix("/")


def test_bytes_are_read_from_the_middle(make_memory: Make) -> None:
    assert memory.read(make_memory(bytes(range(100))), 10, 5) == bytes(range(10, 15))


def test_bytes_are_written_into_the_middle(make_memory: Make) -> None:
    """And nothing around them, nor the size, changes."""
    key = make_memory(bytes(10))
    memory.write(key, 3, b"abc")
    assert path_of(key).read_bytes() == b"\0\0\0abc\0\0\0\0"


@pytest.mark.parametrize("key", ["x", "/x"])
def test_a_key_may_begin_with_a_slash(key: str) -> None:
    assert memory.file_name(key) == "x"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        ".",
        "..",
        "/..",
        "../etc/passwd",
        "a/b",
        "//x",
        "/a/../b",
        "a\0b",
        "a\n",
        "sem.x",
        "x" * 256,
        "é" * 200,
    ],
)
def test_what_is_no_name_is_refused(key: str) -> None:
    with pytest.raises(InvalidValue, match="not a valid name of POSIX shared memory"):
        memory.file_name(key)


@given(st.text(max_size=300))
def test_whatever_the_key_it_stays_in_the_folder(key: str) -> None:
    """Or it is refused."""
    try:
        name = memory.file_name(key)
    except InvalidValue:
        return
    assert (memory.FOLDER / name).parent == memory.FOLDER
    assert name not in (".", "..")


@given(st.text(max_size=300), st.integers(0, 2**70))
def test_whatever_is_asked_for_it_is_read_or_refused(key: str, size: int) -> None:
    """In the words of a problem, and never by another error."""
    with pytest.raises(InvalidValue):
        memory.check(key, size + 2**60)


def test_a_symbolic_link_is_not_followed(make_memory: Make, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    key = make_memory(b"")
    path_of(key).unlink()
    path_of(key).symlink_to(secret)
    with pytest.raises(InvalidValue, match="it is a symbolic link"):
        memory.read(key, 0, 6)
    with pytest.raises(InvalidValue, match="it is a symbolic link"):
        memory.write(key, 0, b"public")
    assert secret.read_bytes() == b"secret"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_keeps_nobody_waiting(make_memory: Make, make: Callable[[Path], None]) -> None:
    key = make_memory(b"")
    path_of(key).unlink()
    make(path_of(key))
    try:
        with pytest.raises(InvalidValue, match="cannot be used"):
            memory.read(key, 0, 0)
        with pytest.raises(InvalidValue, match="cannot be used"):
            memory.write(key, 0, b"")
    finally:
        if path_of(key).is_dir():
            path_of(key).rmdir()


def test_what_is_not_there_is_told() -> None:
    with pytest.raises(InvalidValue, match="it does not exist; create it before"):
        memory.check("/trimvit-test-nothing", 1)


def test_memory_that_has_shrunk_is_refused_and_not_grown(make_memory: Make) -> None:
    """By the size that it has now, whatever it had once."""
    key = make_memory(bytes(100_000))
    memory.check(key, 100_000)
    os.truncate(path_of(key), 5000)
    for use in (lambda: memory.read(key, 0, 100_000), lambda: memory.write(key, 4000, bytes(2000))):
        with pytest.raises(InvalidValue, match="has 5000 bytes"):
            use()
    assert path_of(key).stat().st_size == 5000


def test_memory_that_shrinks_while_it_is_read_is_refused(
    make_memory: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapping of it would have killed the process."""
    key = make_memory(bytes(100_000))

    def shrink_first(*given: object) -> None:
        os.truncate(path_of(key), 5000)

    monkeypatch.setattr(memory, "_check_size", shrink_first)
    with pytest.raises(InvalidValue, match="has 5000 bytes; 100000 are needed"):
        memory.read(key, 0, 100_000)
