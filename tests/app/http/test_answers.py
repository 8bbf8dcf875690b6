"""The headers beside an answer."""

from app.http.answers import longest, server_timing


def test_server_timing_has_the_headers_form() -> None:
    """Phases as metrics with a duration in milliseconds, separated by commas (W3C Server Timing)."""
    assert server_timing({"decode": 1.5, "total": 20.25}) == "decode;dur=1.500, total;dur=20.250"


def test_longest_is_in_milliseconds() -> None:
    """Of several images the longest of a phase is told."""
    assert longest([0.001, 0.0123456, 0.002]) == 12.346
