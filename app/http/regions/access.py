"""Who can use regions, and how a request reads and writes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from starlette.types import Scope

from app.errors import InvalidValue, NotFound, NotLocal
from app.http.callers import key_name_of
from app.http.clients import unmapped
from app.http.head import header_of
from app.http.regions import memory
from app.http.regions.table import Region, Regions
from app.wrong_values import short

# Headers that proxies add, so the client may be on another machine.
_FORWARDED = (b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the data of a tensor is: a number of bytes from an offset on, in the region of that name."""

    region: str
    offset: int
    size: int


class Access:
    """The regions of one request's caller."""

    def __init__(self, regions: Regions, owner: str) -> None:
        self._regions, self._owner = regions, owner

    def check(self, places: Sequence[Place]) -> None:
        """Raises InvalidValue for a place that no region of the caller has."""
        for place in places:
            self._start(place)

    def read(self, place: Place) -> bytearray:
        """A copy of the data there. Raises InvalidValue."""
        key, start = self._start(place)
        return memory.read(key, start, place.size)

    def write(self, name: str, place: Place, data: bytes) -> None:
        """Write the output of that name there. Raises InvalidValue."""
        if len(data) > place.size:
            raise InvalidValue(
                f"the output {name} has {len(data)} bytes, but its shared_memory_byte_size is "
                f"only {place.size}"
            )
        key, start = self._start(place)
        memory.write(key, start, data)

    def _start(self, place: Place) -> tuple[str, int]:
        """The shared memory, and where the place begins in it."""
        try:
            region: Region = self._regions.find(self._owner, place.region)
        except NotFound as problem:
            raise InvalidValue(problem.detail) from problem
        if place.offset + place.size > region.byte_size:
            raise InvalidValue(
                f"the region {short.repr(region.name)} has {region.byte_size} bytes, too few for an offset "
                f"of {short.repr(place.offset)} and a size of {short.repr(place.size)}"
            )
        return region.key, region.offset + place.offset


def access_of(regions: Regions | None, scope: Scope) -> Access:
    """The regions of the request's caller. Raises InvalidValue if shared memory is not enabled, and NotLocal
    as `regions_for` does."""
    try:
        return Access(regions_for(regions, scope), key_name_of(scope))
    except NotFound as problem:
        raise InvalidValue(problem.detail) from problem


def regions_for(regions: Regions | None, scope: Scope) -> Regions:
    """The regions. Raises NotFound if shared memory is not enabled, and NotLocal for a client on another
    machine."""
    if regions is None:
        raise NotFound(
            "shared memory is not enabled on this server; start it with --shared-memory-bytes, or send the "
            "data with the request"
        )
    if not _is_local(scope):
        raise NotLocal(
            "shared memory is for clients on the server's own machine, which connect to it by a loopback "
            "address and without a proxy; send the data with the request"
        )
    return regions


def _is_local(scope: Scope) -> bool:
    client: tuple[str, int] | None = scope.get("client")
    if client is None or any(header_of(scope, name) is not None for name in _FORWARDED):
        return False
    try:
        address = ip_address(client[0].partition("%")[0])
    except ValueError:
        return False
    return unmapped(address).is_loopback
