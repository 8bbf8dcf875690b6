"""Slots in shared memory."""

import gc
import math
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.messages.shared_memory import make_shared_memory
from app.messages.slot_map import SlotMap, stride
from app.messages.slots import SlotReader, SlotWriter
from tests.support.examples import examples

SLOTS = SlotMap(front_ends=3, per_front_end=5)
SHAPE = (13, 7, 3)
BYTES = 13 * 7 * 3


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = make_shared_memory("trimvit-slots")
    yield descriptor
    os.close(descriptor)


def image(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, SHAPE, np.uint8)


def test_every_front_end_has_slots_of_its_own() -> None:
    """All slots belong to exactly one front end."""
    ranges = [SLOTS.range_of(front_end) for front_end in range(3)]
    assert [slot for one in ranges for slot in one] == list(range(SLOTS.count))
    assert {len(one) for one in ranges} == {5}


def test_a_full_queue_of_one_front_end_has_room() -> None:
    """Beside it there is room for what is computed."""
    assert SlotMap.for_queue(2, 1024).per_front_end > 1024


def test_slots_begin_on_pages() -> None:
    """So that each front end can map its own range; their number is a power of two, so that the parts of
    the file for different sizes do not overlap."""
    page = mmap.PAGESIZE
    sizes = (1, page, page + 1, 2 * page, 2 * page + 1, 5 * page)
    assert [stride(size) for size in sizes] == [page, page, 2 * page, 2 * page, 4 * page, 8 * page]


def test_what_front_ends_write_a_worker_reads(memory: int) -> None:
    """From the slot itself: the worker's array is no copy."""
    reader = SlotReader(memory, SLOTS, BYTES)
    writers = [SlotWriter(memory, SLOTS, front_end) for front_end in range(3)]
    written = {}
    for number in range(9):
        slot = writers[number % 3].take()
        assert slot is not None
        writers[number % 3].write(slot, image(number).transpose(1, 0, 2).transpose(1, 0, 2))
        written[slot] = image(number)
    for slot, pixels in written.items():
        view = reader.view(slot)
        assert np.array_equal(view.reshape(SHAPE), pixels)
        assert not view.flags.owndata
        assert not view.flags.writeable


def test_a_slot_that_there_is_not_cannot_be_read(memory: int) -> None:
    """Nor written before it is taken."""
    reader = SlotReader(memory, SLOTS, BYTES)
    for slot in (-1, SLOTS.count):
        with pytest.raises(IndexError):
            reader.view(slot)
    with pytest.raises(ValueError, match="not taken"):
        SlotWriter(memory, SLOTS, 0).write(0, image(1))


def test_a_model_with_another_input_has_slots_of_its_size(memory: int) -> None:
    """The memory grows; readers of the old size still have theirs."""
    writer, reader = SlotWriter(memory, SLOTS, 2), SlotReader(memory, SLOTS, BYTES)
    slot = writer.take()
    assert slot is not None
    writer.write(slot, image(1))
    assert reader.view(slot)[0] == image(1)[0, 0, 0]
    large = np.full((40, 50, 3), 7, np.uint8)
    writer.write(slot, large)
    assert (SlotReader(memory, SLOTS, large.nbytes).view(slot) == 7).all()
    reader.view(SLOTS.count - 1)


def test_images_of_several_sizes_lie_beside_each_other(memory: int) -> None:
    """As those of several models: no slot of one size covers any of another, from whichever front end."""
    shapes = [(13, 7, 3), (40, 50, 3), (80, 90, 3), (170, 180, 3)]
    writers = [SlotWriter(memory, SLOTS, front_end) for front_end in range(3)]
    written = {}
    for number in range(SLOTS.count):
        writer, shape = writers[number % 3], shapes[number % 4]
        slot = writer.take()
        assert slot is not None
        writer.write(slot, np.full(shape, number + 1, np.uint8))
        written[slot] = writer, shape, number + 1
    readers = {shape: SlotReader(memory, SLOTS, math.prod(shape)) for shape in shapes}
    for slot, (writer, shape, value) in written.items():
        assert (readers[shape].view(slot) == value).all()
        assert (writer.view(slot, shape) == value).all()


def resident(descriptor: int) -> int:
    """Bytes of memory that the file takes."""
    return os.fstat(descriptor).st_blocks * 512


@pytest.mark.skipif(not hasattr(mmap, "MADV_REMOVE"), reason="memory is given back on Linux only")
def test_only_slots_that_were_used_take_memory_and_little_stays(memory: int) -> None:
    """After a crowd has gone, and after a front end was replaced, most of the memory is free again."""
    many = SlotMap(2, 1000)
    writer = SlotWriter(memory, many, 1)
    slots = [writer.take() for _ in range(500)]
    for slot in slots:
        assert slot is not None
        writer.write(slot, image(1))
    assert resident(memory) == 500 * stride(BYTES)
    for slot in slots:
        assert slot is not None
        writer.free(slot)
    assert resident(memory) == 64 * stride(BYTES)
    successor = SlotWriter(memory, many, 1)
    slot = successor.take()
    assert slot is not None
    successor.write(slot, image(1))
    assert resident(memory) == stride(BYTES)


def test_the_memory_needs_no_room_in_a_folder(memory: int) -> None:
    """A container's /dev/shm has 64 MB: it is not used."""
    assert "/dev/shm" not in str(Path(f"/proc/self/fd/{memory}").readlink())


def test_a_process_that_inherits_the_memory_reads_it(memory: int) -> None:
    """As a worker does of its supervisor's."""
    writer = SlotWriter(memory, SLOTS, 1)
    slot = writer.take()
    assert slot is not None
    writer.write(slot, image(3))
    program = (
        "import sys\nfrom app.messages.slot_map import SlotMap\nfrom app.messages.slots import SlotReader\n"
        f"reader = SlotReader({memory}, SlotMap(3, 5), {BYTES})\n"
        f"sys.stdout.buffer.write(reader.view({slot}).tobytes())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], pass_fds=(memory,), capture_output=True, check=True
    )
    assert ended.stdout == image(3).tobytes()


class SlotMachine(RuleBasedStateMachine):
    """Slots taken and freed in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = make_shared_memory("trimvit-slots")
        self.writer = SlotWriter(self.memory, SLOTS, 1)
        self.reader = SlotReader(self.memory, SLOTS, BYTES)
        self.held: dict[int, int] = {}
        self.number = 0

    @rule()
    def take(self) -> None:
        slot = self.writer.take()
        if slot is None:
            assert len(self.held) == SLOTS.per_front_end
            return
        assert slot in SLOTS.range_of(1)
        assert slot not in self.held
        self.number += 1
        self.writer.write(slot, image(self.number))
        self.held[slot] = self.number

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        self.writer.free(slot)
        del self.held[slot]
        with pytest.raises(KeyError):
            self.writer.free(slot)

    @invariant()
    def nothing_is_lost_or_overwritten(self) -> None:
        assert self.writer.taken == len(self.held)
        assert repr(self.writer) == f"<SlotWriter {len(self.held)} of 5 slots taken>"
        for slot, number in self.held.items():
            assert np.array_equal(self.reader.view(slot).reshape(SHAPE), image(number))

    def teardown(self) -> None:
        os.close(self.memory)
        gc.collect(0)


TestSlotMachine = SlotMachine.TestCase
TestSlotMachine.settings = settings(max_examples=examples(25), stateful_step_count=30)
