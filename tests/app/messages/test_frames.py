"""Messages on a stream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.messages.frames import LONGEST, FrameReader, NoFrame, framed


@given(st.lists(st.binary(max_size=300), max_size=8), st.randoms())
def test_messages_come_whole_however_the_stream_is_cut(messages: list[bytes], draw: object) -> None:
    """In order, none twice, and none before it is complete."""
    stream = b"".join(map(framed, messages))
    reader, come = FrameReader(), []
    while stream:
        size = draw.randint(1, len(stream))  # type: ignore[attr-defined]
        come += reader.feed(stream[:size])
        stream = stream[size:]
    assert come == messages


def test_an_absurd_length_ends_the_stream() -> None:
    """What is no frame must not be waited for."""
    with pytest.raises(NoFrame, match="a message of 4294967295 bytes"):
        list(FrameReader().feed(b"\xff\xff\xff\xff"))
    assert LONGEST < 2**32
