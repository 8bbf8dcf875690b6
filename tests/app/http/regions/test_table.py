"""Regions that several front ends know."""

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from app.errors import InvalidValue, NotFound, Problem, TooLarge
from app.http.regions import memory
from app.http.regions.table import Region, Regions
from tests.support.examples import examples

Make = Callable[..., str]


def region(key: str, name: str = "a", *, owner: str = "", offset: int = 0, size: int = 10) -> Region:
    return Region(owner, name, key, offset, size)


def test_every_front_end_knows_what_one_was_told(regions: Regions, tmp_path: Path, make_memory: Make) -> None:
    """At once, and also that it was unregistered."""
    other = Regions(tmp_path / "regions", most_bytes=100_000, most_regions=3)
    assert other.of("") == []
    made = region(make_memory(bytes(10)))
    regions.register(made)
    assert other.find("", "a") == made
    for _ in range(20):  # as fast as they come
        other.unregister("", "a")
        with pytest.raises(NotFound):
            regions.find("", "a")
        other.register(made)
        assert regions.of("") == [made]


def test_an_owner_has_names_of_its_own(regions: Regions, make_memory: Make) -> None:
    """Nobody finds or unregisters another's."""
    one, other = make_memory(bytes(10)), make_memory(bytes(10))
    regions.register(region(one, owner="anna"))
    regions.register(region(other, owner="berta"))
    assert regions.find("anna", "a").key == one
    regions.unregister("berta")
    assert regions.of("berta") == []
    assert regions.find("anna", "a").key == one
    with pytest.raises(NotFound, match="there is no region 'a'; register it before you use it"):
        regions.find("berta", "a")


def test_a_name_is_taken_until_it_is_unregistered(regions: Regions, make_memory: Make) -> None:
    made = region(make_memory(bytes(10)))
    regions.register(made)
    with pytest.raises(InvalidValue, match="unregister it first"):
        regions.register(made)
    regions.unregister("", "a")
    regions.unregister("", "a")  # what is not there is no mistake
    regions.register(made)


@pytest.mark.parametrize(("offset", "size"), [(0, 11), (1, 10), (10**30, 1)])
def test_a_region_lies_in_its_memory(regions: Regions, make_memory: Make, offset: int, size: int) -> None:
    with pytest.raises(InvalidValue, match="has 10 bytes"):
        regions.register(region(make_memory(bytes(10)), offset=offset, size=size))


def test_regions_are_bounded_in_number_and_bytes(regions: Regions, make_memory: Make) -> None:
    """Of all owners together; and what is gone makes room."""
    keys = [make_memory(bytes(50_000)) for _ in range(4)]
    for place in range(3):
        regions.register(region(keys[place], str(place), owner=str(place)))
    with pytest.raises(TooLarge, match="3 regions of shared memory, as many as it may"):
        regions.register(region(keys[3]))
    (memory.FOLDER / keys[1][1:]).unlink()
    regions.register(region(keys[3]))
    assert regions.of("1") == []
    regions.unregister("0")
    with pytest.raises(TooLarge, match="99990 bytes, and 20 are registered; together at most 100000"):
        regions.register(region(make_memory(bytes(99_990)), "large", size=99_990))


def test_processes_that_register_at_once_lose_nothing(tmp_path: Path, make_memory: Make) -> None:
    key = make_memory(bytes(10))

    def register(number: int) -> None:
        Regions(tmp_path / "regions", 10_000, 100).register(region(key, str(number)))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(register, range(40)))
    assert {each.name for each in Regions(tmp_path / "regions", 10_000, 100).of("")} == set(
        map(str, range(40))
    )


class Machine(RuleBasedStateMachine):
    """Two front ends and a plain dictionary that agree whatever is done in whichever order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.front_ends = [Regions(Path(self.folder.name, "regions"), 1000, 4) for _ in range(2)]
        self.path = memory.FOLDER / f"trimvit-test-machine-{os.getpid()}"
        self.path.write_bytes(bytes(1000))
        self.wanted: dict[tuple[str, str], int] = {}

    def teardown(self) -> None:
        self.path.unlink()
        self.folder.cleanup()

    @rule(
        front_end=st.integers(0, 1),
        owner=st.sampled_from(["anna", "berta"]),
        name=st.sampled_from("abc"),
        size=st.integers(1, 600),
    )
    def register(self, front_end: int, owner: str, name: str, size: int) -> None:
        allowed = (
            (owner, name) not in self.wanted
            and len(self.wanted) < 4
            and sum(self.wanted.values()) + size <= 1000
        )
        try:
            self.front_ends[front_end].register(region(self.path.name, name, owner=owner, size=size))
        except Problem:
            assert not allowed
        else:
            assert allowed
            self.wanted[owner, name] = size

    @rule(
        front_end=st.integers(0, 1),
        owner=st.sampled_from(["anna", "berta"]),
        name=st.sampled_from([*"abc", None]),
    )
    def unregister(self, front_end: int, owner: str, name: str | None) -> None:
        self.front_ends[front_end].unregister(owner, name)
        for key in list(self.wanted):
            if key[0] == owner and name in (None, key[1]):
                del self.wanted[key]

    @invariant()
    def all_agree(self) -> None:
        for front_end in self.front_ends:
            for owner in ("anna", "berta"):
                found = {(each.owner, each.name): each.byte_size for each in front_end.of(owner)}
                assert found == {key: size for key, size in self.wanted.items() if key[0] == owner}


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=examples(15), stateful_step_count=15, deadline=None)


def test_its_representation_says_how_full_it_is(regions: Regions, make_memory: Make) -> None:
    regions.register(region(make_memory(bytes(10))))
    assert repr(regions).startswith("<Regions 1 of 3 in ")
