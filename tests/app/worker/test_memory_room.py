"""How much memory is left, by files as the kernel writes them."""

from pathlib import Path

import pytest

from app.worker.memory_room import room_bytes
from app.worker.model_loader import NoRoom
from app.worker.model_memory import refuse_too_little


def written(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def room(
    folder: Path, membership: str, meminfo: str = "MemTotal: 9 kB\nMemAvailable:  7000 kB\n"
) -> int | None:
    (folder / "cgroup").write_text(membership)
    (folder / "meminfo").write_text(meminfo)
    return room_bytes(folder / "groups", folder / "cgroup", folder / "meminfo")


def test_the_least_of_all_groups_and_the_machine(tmp_path: Path) -> None:
    """Of version 2; a group without a limit says nothing, and files that are only kept count as free."""
    groups = tmp_path / "groups"
    written(groups)
    written(
        groups / "a",
        memory__max="5000000",
        memory__current="3000000",
        memory__stat="anon 1\ninactive_file 500000\n",
    )
    written(groups / "a/b", memory__max="max", memory__current="1")
    assert room(tmp_path, "0::/a/b\n") == 2_500_000
    assert room(tmp_path, "0::/c\n") == 7_000 * 1024
    assert room(tmp_path, "0::/a/b\n", "MemAvailable: 7 kB\n") == 7 * 1024


def test_a_container_that_is_the_root_of_what_it_sees(tmp_path: Path) -> None:
    written(tmp_path / "groups", memory__max="5000", memory__current="6000")
    assert room(tmp_path, "0::/\n") == 0


def test_version_1(tmp_path: Path) -> None:
    """Without a limit it has a very large number there."""
    groups = tmp_path / "groups/memory"
    written(groups, memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes="1")
    stat = "total_inactive_file 300\n"
    written(
        groups / "docker", memory__limit_in_bytes="9000", memory__usage_in_bytes="8000", memory__stat=stat
    )
    assert room(tmp_path, "5:cpu:/docker\n4:memory,hugetlb:/docker\n0::/\n") == 1300


def test_where_nothing_says_nothing_is_known(tmp_path: Path) -> None:
    assert room_bytes(tmp_path / "a", tmp_path / "b", tmp_path / "c") is None


def test_too_little_is_told_with_the_numbers() -> None:
    refuse_too_little(300, 100, 300, "memory")
    refuse_too_little(300, 100, None, "memory")
    with pytest.raises(NoRoom, match=r"about 3,000 MB of memory \(3 times .*\), and 2,999 MB are free"):
        refuse_too_little(3_000_000_000, 1_000_000_000, 2_999_000_000, "memory")
