"""API keys: how they are written, whose they are, and that a changed file is read again."""

import hashlib
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.security import keys
from app.security.keys import KEYS_VARIABLE, ApiKey, KeyRing, KeysError, key_ring, parse_keys
from app.settings.settings import Settings

ALICE, BOB, CAROL = "a" * 16, "bob-has-a-longer-key=/+", "c" * 31


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def write(path: Path, text: str, version: int) -> None:
    """A file whose time of change cannot be mistaken for an earlier one's."""
    path.write_text(text)
    os.utime(path, ns=(version * 10**9, version * 10**9))


def test_keys_are_written_plain_or_hashed() -> None:
    """A line or a comma apart, with comments; a name may have two keys while one is rotated."""
    text = (
        f"# who may ask\nalice:{ALICE}, alice:{CAROL}\n\n  bob:sha256:{digest(BOB).hex().upper()}  # hashed\n"
    )
    assert parse_keys(text, "here") == (
        ApiKey("alice", digest(ALICE)),
        ApiKey("alice", digest(CAROL)),
        ApiKey("bob", digest(BOB)),
    )


def test_the_word_sha256_may_be_in_capitals() -> None:
    """It would be a key otherwise, and whoever read the file could use it."""
    (key,) = parse_keys("alice:SHA256:" + hashlib.sha256(ALICE.encode()).hexdigest().upper(), "here")
    assert key.digest == hashlib.sha256(ALICE.encode()).digest()


def test_the_highest_priority_of_a_key_stands_behind_it() -> None:
    """Of plain and hashed keys, between commas too; without it the server's setting decides."""
    text = (
        f"alice:{ALICE} priority=high, alice:{CAROL}\nbob:sha256:{digest(BOB).hex()} \t priority=batch # late"
    )
    assert parse_keys(text, "here") == (
        ApiKey("alice", digest(ALICE), "high"),
        ApiKey("alice", digest(CAROL), None),
        ApiKey("bob", digest(BOB), "batch"),
    )


def test_who_may_load_models_is_marked_behind_the_key() -> None:
    """Before or behind the priority, of plain and hashed keys."""
    hashed = f"bob:sha256:{digest(BOB).hex()} priority=high admin"
    text = f"alice:{ALICE} admin\nalice:{CAROL} admin priority=batch,{hashed}"
    assert parse_keys(text, "here") == (
        ApiKey("alice", digest(ALICE), None, is_admin=True),
        ApiKey("alice", digest(CAROL), "batch", is_admin=True),
        ApiKey("bob", digest(BOB), "high", is_admin=True),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"alice:{ALICE} admin admin", "and by admin"),
        (f"alice:{ALICE} priority=high priority=batch", "only one of priority=high"),
        (f"alice:{ALICE} priority=highest", "only one of priority=high, priority=normal, priority=batch"),
        (f"alice:{ALICE} high", "only one of priority=high"),
        (f"alice: {ALICE}", "must not contain a space|at least 16"),
        ("", "here contains no keys"),
        ("# none\n", "here contains no keys"),
        (f"\nalice {ALICE}", "line 2 of here is not name:key"),
        (f":{ALICE}", "line 1 of here is not name:key"),
        (ALICE, "line 1 of here is not name:key"),
        (f"al ice:{ALICE}", "line 1 of here is not name:key"),
        ("alice:" + ALICE[:-1], "the key must have at least 16"),
        (f"alice:{ALICE} {ALICE}", "not contain a space"),
        (f"alice:{ALICE}ä", "printable ASCII"),
        ("alice:sha256:" + "0" * 63, "the hash must have 64 hexadecimal digits"),
        ("alice:SHA256:" + "0" * 63, "the hash must have 64 hexadecimal digits"),
        *(
            (f"alice:{scheme}{'0' * 64}", "a hash must be written as sha256:")
            for scheme in (
                "sha-256:",
                "sha256=",
                "SHA512:",
                "{SHA256}",
                "{SSHA}",
                "$2b$12$",
                "bcrypt:",
                "md5:",
            )
        ),
        (f'alice:"{ALICE}"', "the key is in quotation marks"),
    ],
)
def test_what_is_no_key_is_refused_by_its_line_and_not_shown(text: str, words: str) -> None:
    """The error says where and what is expected; it may be logged, so it holds no secret."""
    with pytest.raises(KeysError, match=words) as caught:
        parse_keys(text, "here")
    assert ALICE[:-1] not in str(caught.value)
    assert "alice" not in str(caught.value)


def test_a_key_gives_its_name_and_nothing_else_does() -> None:
    """Not a part of a key, not its hash, not a name."""
    ring = KeyRing(parse_keys(f"alice:{ALICE},bob:{BOB},alice:{CAROL}", "here"), None)
    assert [ring.name_of(key) for key in (ALICE, BOB, CAROL)] == ["alice", "bob", "alice"]
    for wrong in ("", ALICE[:-1], ALICE + "a", ALICE.upper(), "alice", digest(ALICE).hex(), f"alice:{ALICE}"):
        assert ring.name_of(wrong) is None, wrong


@given(st.text(max_size=40))
def test_any_text_may_be_presented(text: str) -> None:
    """Whatever a client sends as its key is compared, and is nobody's."""
    ring = KeyRing(parse_keys(f"alice:{ALICE}", "here"), None)
    try:
        assert ring.name_of(text.encode().decode("latin-1")) is None
    except UnicodeEncodeError:
        pytest.fail("a header cannot hold what cannot be encoded")


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests are compared, all of them, whichever it is: time tells neither a key nor its place."""
    compared = []

    def compare(own: bytes, given: bytes) -> bool:
        compared.append((len(own), len(given)))
        return own == given

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    ring = KeyRing(parse_keys(f"alice:{ALICE},bob:{BOB},carol:{CAROL}", "here"), None)
    for presented in (ALICE, CAROL, "x", "y" * 1000):
        compared.clear()
        ring.name_of(presented)
        assert compared == [(32, 32)] * 3


def test_a_ring_shows_no_key() -> None:
    """Neither a key nor its hash, wherever one is printed."""
    ring = KeyRing(parse_keys(f"alice:{ALICE}", "here"), None)
    shown = repr(ring) + repr(ring._fixed)
    assert "alice" in shown
    assert ALICE not in shown
    assert digest(ALICE).hex() not in shown
    assert repr(digest(ALICE))[2:-1] not in shown


def test_a_changed_file_is_read_again_within_a_second(tmp_path: Path) -> None:
    """A key is added, and another taken away, without a restart."""
    path, clock = tmp_path / "keys", Clock()
    write(path, f"alice:{ALICE}\n", 1)
    ring = KeyRing((ApiKey("bob", digest(BOB)),), path, clock)
    assert ring.name_of(ALICE) == "alice"
    write(path, f"carol:{CAROL}\n", 2)
    clock.now = 1.0
    assert ring.name_of(CAROL) == "carol"
    assert ring.name_of(ALICE) is None
    assert ring.name_of(BOB) == "bob", "the environment's keys stay"


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    """As orchestrators replace a mounted secret: another file of the same size and time."""
    path, clock = tmp_path / "keys", Clock()
    write(path, f"alice:{ALICE}\n", 1)
    ring = KeyRing((), path, clock)
    write(tmp_path / "next", f"alice:{ALICE[::-1].replace('a', 'z')}\n", 1)
    (tmp_path / "next").replace(path)
    clock.now = 1.0
    assert ring.name_of(ALICE) is None
    assert ring.name_of("z" * 16) == "alice"


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at once a second, and read where it has changed."""
    path, clock = tmp_path / "keys", Clock()
    write(path, f"alice:{ALICE}\n", 1)
    ring = KeyRing((), path, clock)
    monkeypatch.setattr(keys, "_read", lambda _: pytest.fail("it was read"))
    for clock.now in (0.5, 1.0, 2.0):
        assert ring.name_of(ALICE) == "alice"
    write(path, f"carol:{CAROL}\n", 2)
    clock.now = 2.5
    assert ring.name_of(ALICE) == "alice", "not looked at before a second has passed"


@pytest.mark.parametrize("change", ["broken", "empty", "gone"])
def test_a_file_that_became_wrong_leaves_the_keys_as_they_were(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    """Nobody is let in or shut out by a slip of the pen; the log says so once, without the line's secret."""
    path, clock = tmp_path / "keys", Clock()
    write(path, f"alice:{ALICE}\n", 1)
    ring = KeyRing((), path, clock)
    if change == "gone":
        path.unlink()
    else:
        write(path, "" if change == "empty" else f"bob {BOB}\n", 2)
    with caplog.at_level(logging.INFO, "app.security.keys"):
        for clock.now in (1.0, 2.0, 3.0):
            assert ring.name_of(ALICE) == "alice"
            assert ring.name_of(BOB) is None
    assert len(caplog.messages) == 1
    assert "the API keys were not reloaded" in caplog.text
    assert BOB not in caplog.text
    write(path, f"bob:{BOB}\n", 3)
    clock.now = 4.0
    assert ring.name_of(BOB) == "bob", "a mended file is read"


def test_keys_come_from_the_file_and_the_environment(tmp_path: Path) -> None:
    """Either, both, or none, which asks for none."""
    path = tmp_path / "keys"
    path.write_text(f"alice:{ALICE}\n")
    listed = {KEYS_VARIABLE: f"bob:{BOB},carol:{CAROL}"}
    assert key_ring(Settings(), {}) is None
    assert key_ring(Settings(), {KEYS_VARIABLE: " "}) is None
    quoted = key_ring(Settings(), {KEYS_VARIABLE: f'"bob:{BOB}"\n'})  # as a file of variables has it
    assert quoted is not None
    assert quoted.name_of(BOB) == "bob"
    for settings, environment, known in (
        (Settings(api_keys_file=path), {}, {ALICE}),
        (Settings(), listed, {BOB, CAROL}),
        (Settings(api_keys_file=path), listed, {ALICE, BOB, CAROL}),
    ):
        ring = key_ring(settings, environment)
        assert ring is not None
        assert {key for key in (ALICE, BOB, CAROL) if ring.name_of(key)} == known


def test_a_server_with_unreadable_keys_does_not_start(tmp_path: Path) -> None:
    """Open to all, or shut to all, would both be wrong."""
    for path, words in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(KeysError, match=words):
            key_ring(Settings(api_keys_file=path), {})
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    with pytest.raises(KeysError, match="not UTF-8"):
        key_ring(Settings(api_keys_file=tmp_path / "latin"), {})
    with pytest.raises(KeysError, match=f"line 1 of {KEYS_VARIABLE}"):
        key_ring(Settings(), {KEYS_VARIABLE: "x"})


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfalice:" + ALICE.encode(),
        b"# keys\r\nalice:" + ALICE.encode() + b"\r\n\r\n",
        b"alice:" + ALICE.encode() + b"\t# late\n",
        b"  alice:" + ALICE.encode() + b"  ,\n",
        b"alice:" + ALICE.encode() + b"\nalice:" + ALICE.encode() + b"\n",
    ],
    ids=["mark", "CR LF", "comment behind a tab", "blanks", "twice"],
)
def test_files_as_editors_write_them_are_read(tmp_path: Path, content: bytes) -> None:
    """Those of Windows begin with a mark and end lines with CR LF."""
    (tmp_path / "keys").write_bytes(content)
    ring = KeyRing((), tmp_path / "keys")
    assert ring.name_of(ALICE) == "alice"


def test_a_key_has_no_number_sign() -> None:
    """It would begin a comment for some readers and none for others."""
    with pytest.raises(KeysError, match="no space, comma or #"):
        parse_keys(f"alice:{ALICE}#more-of-the-key", "here")


@pytest.mark.parametrize("other", [f"bob:{ALICE}", f"alice:{ALICE} priority=high", f"alice:{ALICE} admin"])
def test_one_key_of_two_callers_is_refused(other: str) -> None:
    """Whose share would it take? The key is not shown."""
    with pytest.raises(KeysError, match="have the same key") as caught:
        parse_keys(f"alice:{ALICE}\n{other}", "here")
    assert ALICE not in str(caught.value)


def test_a_file_that_becomes_readable_again_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Though only its mode changed."""
    path, clock = tmp_path / "keys", Clock()
    path.write_text(f"alice:{ALICE}")
    ring = KeyRing((), path, clock)
    path.unlink()
    path.mkdir()  # whoever runs the tests may read every file
    clock.now += 2
    assert ring.name_of(ALICE) == "alice"
    assert "the API keys were not reloaded" in caplog.text
    path.rmdir()
    path.write_text(f"bob:{BOB}")
    clock.now += 2
    assert ring.name_of(BOB) == "bob"
