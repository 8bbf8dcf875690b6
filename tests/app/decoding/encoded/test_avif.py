"""AVIFs that name their colours by numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.decoding.encoded.avif import colour_numbers, is_avif
from tests.app.decoding.encoded.files import encoded, noisy, seen
from tests.models.profiles import DISPLAY_P3_PROFILE

PLAIN = encoded(noisy(), "AVIF", quality=50)


def named(primaries: int, transfer: int) -> bytes:
    place = PLAIN.index(b"colrnclx") + 8
    numbers = primaries.to_bytes(2, "big") + transfer.to_bytes(2, "big")
    return PLAIN[:place] + numbers + PLAIN[place + 4 :]


@pytest.mark.parametrize(
    ("primaries", "transfer", "warning"),
    [(9, 16, "HDR"), (9, 18, "HDR"), (12, 13, "wider gamut than sRGB"), (1, 13, None), (2, 2, None)],
    ids=["PQ", "HLG", "Display P3", "sRGB", "unspecified"],
)
def test_colours_that_are_not_converted_are_said(primaries: int, transfer: int, warning: str | None) -> None:
    """As of a HEIC (ITU-T H.273)."""
    data = named(primaries, transfer)
    assert colour_numbers(data) == (primaries, transfer)
    said = seen(data).warnings
    assert [warning in one for one in said] == [True] if warning else not said


def test_a_profile_goes_before_numbers() -> None:
    """It is converted, so there is nothing to say."""
    data = encoded(noisy(), "AVIF", icc_profile=DISPLAY_P3_PROFILE)
    assert is_avif(data)
    assert colour_numbers(data) is None
    assert not seen(data).warnings


@given(st.integers(0, 400), st.binary(max_size=12))
def test_what_is_cut_or_broken_is_passed_over(place: int, garbage: bytes) -> None:
    """Whatever the boxes say, nothing is raised."""
    colour_numbers(PLAIN[:place])
    colour_numbers(PLAIN[:place] + garbage + PLAIN[place + len(garbage) :])
