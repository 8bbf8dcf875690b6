"""What a worker leaves to its successor."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from app.messages.capacity import Limits, Measured, Work
from app.messages.model import ModelInfo
from app.worker.learned import Learned, recall, remember
from tests.app.fakes import MODEL

LIMITS = Limits(batch_tokens=70, threads=4, streams=2)
LEARNED = Learned(MODEL, LIMITS, (Measured(2, Work(3, 1.25), 0.5), Measured(4, Work(1, 0.75), 0.25)))


def test_it_is_taken_once(tmp_path: Path) -> None:
    """A successor that does not become ready leaves nothing to those after it."""
    path = tmp_path / "worker-0.learned"
    remember(path, LEARNED)
    assert recall(path, MODEL, LIMITS) == LEARNED
    assert recall(path, MODEL, LIMITS) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("info", "limits"),
    [
        (msgspec.structs.replace(MODEL, dtype="bfloat16"), LIMITS),
        (msgspec.structs.replace(MODEL, device="cpu:7"), LIMITS),
        (MODEL, replace(LIMITS, streams=1)),
    ],
    ids=["dtype", "device", "streams"],
)
def test_it_holds_for_what_it_was_learned_with(tmp_path: Path, info: ModelInfo, limits: Limits) -> None:
    """Another dtype, device or number of streams is measured anew."""
    path = tmp_path / "worker-0.learned"
    remember(path, LEARNED)
    assert recall(path, info, limits) is None


@pytest.mark.parametrize("text", [b"", b"{", b'{"info": 1}', b"\xff"], ids=repr)
def test_what_cannot_be_read_is_as_good_as_nothing(tmp_path: Path, text: bytes) -> None:
    """A start takes longer then, and does not fail."""
    path = tmp_path / "worker-0.learned"
    path.write_bytes(text)
    assert recall(path, MODEL, LIMITS) is None
    assert not path.exists()
