"""The slot of one image is freed at its end, whatever became of the image."""

import os
from collections.abc import Iterator

import numpy as np
import pytest

from app.dispatch.slot import Slot
from app.errors import Overloaded
from app.messages.shared_memory import make_shared_memory
from app.messages.slot_map import SlotMap
from app.messages.slots import SlotWriter


@pytest.fixture
def slots() -> Iterator[SlotWriter]:
    """Two."""
    memory = make_shared_memory("trimvit-slots")
    yield SlotWriter(memory, SlotMap(1, 2), 0)
    os.close(memory)


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (5, 7, 3), np.uint8)


def test_pixels_are_held_until_the_end(slots: SlotWriter) -> None:
    """A copy of them stays beyond it."""
    with Slot(slots) as slot:
        assert slots.taken == 0, "it is taken when the pixels come"
        slot.write(picture(1))
        assert (slot.size, slots.taken) == (5 * 7 * 3, 1)
        assert repr(slot) == "<Slot 105 bytes in 0>"
        copied = slot.copy()
    assert slots.taken == 0
    with Slot(slots) as other:
        other.write(picture(2))
    assert np.array_equal(copied, picture(1))


def test_before_pixels_have_come_there_is_nothing_to_ask_about(slots: SlotWriter) -> None:
    """Nor to copy; and nothing to free."""
    with Slot(slots) as slot:
        assert repr(slot) == "<Slot nothing>"
        with pytest.raises(ValueError, match="no pixels"):
            _ = slot.number
        with pytest.raises(ValueError, match="no pixels"):
            slot.copy()


def test_pixels_that_come_after_the_end_take_no_slot(slots: SlotWriter) -> None:
    """As of a decoder whose request was withdrawn meanwhile."""
    with Slot(slots) as slot:
        pass
    slot.write(picture(1))
    assert slots.taken == 0
    assert repr(slot) == "<Slot nothing, ended>"


def test_an_image_written_twice_has_one_slot(slots: SlotWriter) -> None:
    """The later pixels count."""
    with Slot(slots) as slot:
        slot.write(picture(1))
        slot.write(picture(2))
        assert slots.taken == 1
        assert np.array_equal(slot.copy(), picture(2))
    assert slots.taken == 0


def test_without_a_free_slot_pixels_are_refused(slots: SlotWriter) -> None:
    """With a time to come back, and those of others stay."""
    with Slot(slots) as one, Slot(slots) as other, Slot(slots) as late:
        one.write(picture(1))
        other.write(picture(2))
        with pytest.raises(Overloaded) as caught:
            late.write(picture(3))
        assert caught.value.retry_after_s is not None
        assert np.array_equal(one.copy(), picture(1))
        assert np.array_equal(other.copy(), picture(2))
    assert slots.taken == 0


def test_what_is_raised_within_frees_it(slots: SlotWriter) -> None:
    """A cancelled request, a refusal, a fault."""

    def fail() -> None:
        with Slot(slots) as slot:
            slot.write(picture(1))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert slots.taken == 0
