"""Whether a client takes bytes rather than JSON."""

import pytest

from app.http.accept import prefers_bytes

RAW, JSON = "application/octet-stream", "application/json"


@pytest.mark.parametrize(
    ("accept", "bytes_it_is"),
    [
        ("", False),
        ("*/*", False),
        ("application/*", False),
        (JSON, False),
        (RAW, True),
        (RAW.upper(), True),
        (f"{RAW}, */*", True),
        (f"{JSON}, {RAW}", True),
        (f"{JSON};q=0.9, {RAW};q=0.5", False),
        (f"{JSON};q=0.5, {RAW} ; q=0.9", True),
        (f"{RAW};q=0", False),
        (f"{RAW};q=much", False),
        (f"{RAW};version=2", True),
        (";;=,,", False),
    ],
)
def test_bytes_are_for_who_names_them(accept: str, bytes_it_is: bool) -> None:
    """With no lower weight than JSON."""
    assert prefers_bytes(accept) is bytes_it_is
