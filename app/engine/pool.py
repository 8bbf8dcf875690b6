"""Which of several engines gets the next image: the one that is predicted to have it done first. Pure policy:
no clock, no sockets; the caller passes ``now`` (seconds, any monotonic origin).

What an engine tells of its queue counts everybody's images and is kept up to date in an `Outlook`. Before it
has told anything, and among equals, goes what this front end has there itself. Work is measured in unpruned
images: an image counts as its share of compute.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from app.engine.messages import Priority
from app.engine.outlook import Outlook

# What an unpruned image takes on an engine that has not told: more than on any that has.
_UNTOLD_S = 60.0


@dataclass(slots=True)
class Standing:
    """What one front end has at one engine. ``last``: the last image that it sent there."""

    last: int = -1
    _ours: dict[int, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Standing {len(self._ours)} images, {self.work:.2f} unpruned, the last was {self.last}>"

    @property
    def work(self) -> float:
        """Our images there, in unpruned images."""
        return sum(self._ours.values())

    def sent(self, image: int, share: float) -> None:
        """The engine has been sent an image of ours. Images are numbered upwards."""
        self._ours[image] = share
        self.last = image

    def ended(self, image: int) -> None:
        """It is answered, refused, withdrawn or lost; once is enough."""
        self._ours.pop(image, None)

    def lost(self) -> None:
        """The engine has gone, and all our images with it."""
        self._ours.clear()


def done_in_s(
    outlook: Outlook, standing: Standing, share: float, caller: str, priority: Priority, now: float
) -> float:
    """When an image of that share of compute is predicted to be done by the engine."""
    if outlook.load is None:
        return _UNTOLD_S * (standing.work + share)
    return outlook.wait_s(caller, priority, share, now) + share * outlook.load.image_s


def choose(
    engines: Sequence[tuple[Outlook, Standing]], share: float, caller: str, priority: Priority, now: float
) -> int:
    """The place of the engine that is predicted to have an image done first. Among equals it is the one with
    the least work of ours, then the one whose last image from us is the longest ago.

    Raises ValueError where there is none.
    """
    if not engines:
        raise ValueError("there is no engine to choose")

    def rank(place: int) -> tuple[float, float, int]:
        outlook, standing = engines[place]
        return done_in_s(outlook, standing, share, caller, priority, now), standing.work, standing.last

    return min(range(len(engines)), key=rank)
