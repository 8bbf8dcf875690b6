"""The registered regions, in a file that all front ends of a server read and write.

The file is replaced as a whole, with a time that always rises, so its time tells whether it has changed.
Whoever changes it holds a lock.
"""

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from app.errors import InvalidValue, NotFound, TooLarge
from app.http.regions import memory
from app.wrong_values import no_such, short


class Region(msgspec.Struct, frozen=True, array_like=True):
    """``byte_size`` bytes of the shared memory ``key``, from ``offset`` on, under a name of its ``owner``:
    the name of an API key, empty if no keys are required."""

    owner: str
    name: str
    key: str
    offset: int
    byte_size: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Region])


class Regions:
    """All regions of one server. ``file``: where they are stored, in a folder that only the server's user can
    read. ``most_bytes`` and ``most_regions``: limits for all owners together."""

    def __init__(self, file: Path, most_bytes: int, most_regions: int) -> None:
        self._file, self._lock = file, file.with_suffix(".lock")
        self._most_bytes, self._most_regions = most_bytes, most_regions
        self._read_at: tuple[int, int] | None = None
        self._known: dict[tuple[str, str], Region] = {}

    def __repr__(self) -> str:
        return f"<Regions {len(self._now())} of {self._most_regions} in {self._file}>"

    def of(self, owner: str) -> list[Region]:
        """The regions of the owner, in the order of registration."""
        return [region for region in self._now().values() if region.owner == owner]

    def find(self, owner: str, name: str) -> Region:
        """The region of the owner with that name. Raises NotFound."""
        region = self._now().get((owner, name))
        if region is None:
            known = [each.name for each in self.of(owner)]
            told = no_such("region", name, known) if known else f"there is no region {short.repr(name)}"
            raise NotFound(f"{told}; register it before you use it")
        return region

    def register(self, region: Region) -> None:
        """Add a region. Raises InvalidValue if its name is taken or its shared memory cannot be used, and
        TooLarge if a limit is reached. Regions whose memory no longer exists are removed first."""
        memory.check(region.key, region.offset + region.byte_size)
        with self._changing() as regions:
            if any((each.owner, each.name) == (region.owner, region.name) for each in regions):
                raise InvalidValue(
                    f"the region {short.repr(region.name)} is already registered; unregister it "
                    "first, or use another name"
                )
            if self._beyond(regions, region) is not None:
                regions[:] = [each for each in regions if _is_there(each)]
            if (why := self._beyond(regions, region)) is not None:
                raise TooLarge(why)
            regions.append(region)

    def unregister(self, owner: str, name: str | None = None) -> None:
        """Remove the owner's region of that name, if there is one, or all of the owner's regions."""
        with self._changing() as regions:
            regions[:] = [
                each for each in regions if each.owner != owner or (name is not None and each.name != name)
            ]

    def _beyond(self, regions: Sequence[Region], another: Region) -> str | None:
        """The limit that another region would exceed."""
        if len(regions) >= self._most_regions:
            return (
                f"the server has {len(regions)} regions of shared memory, as many as it may "
                "(--shared-memory-regions); unregister some"
            )
        held = sum(each.byte_size for each in regions)
        if held + another.byte_size > self._most_bytes:
            return (
                f"the region has {another.byte_size} bytes, and {held} are registered; together at most "
                f"{self._most_bytes} are allowed (--shared-memory-bytes)"
            )
        return None

    def _now(self) -> dict[tuple[str, str], Region]:
        try:
            found = self._file.stat()
        except FileNotFoundError:  # no region has been registered yet
            return {}
        version = found.st_mtime_ns, found.st_ino
        if version != self._read_at:
            regions = _decoder.decode(self._file.read_bytes())
            self._known = {(region.owner, region.name): region for region in regions}
            self._read_at = version
        return self._known

    @contextmanager
    def _changing(self) -> Iterator[list[Region]]:
        """A context manager for a list of regions, which is written at the end."""
        with self._lock.open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                before = self._file.stat().st_mtime_ns
                regions = _decoder.decode(self._file.read_bytes())
            except FileNotFoundError:
                before, regions = 0, []
            yield regions
            written = self._file.with_suffix(".new")
            written.write_bytes(_encoder.encode(regions))
            changed = max(time.time_ns(), before + 1)
            os.utime(written, ns=(changed, changed))
            written.replace(self._file)


def _is_there(region: Region) -> bool:
    try:
        memory.check(region.key, region.offset + region.byte_size)
    except InvalidValue:
        return False
    return True
