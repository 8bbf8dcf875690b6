"""The messages to send at the end of a turn. Pure: the owner of the sockets takes them from here."""

from dataclasses import dataclass, field

from app.messages import to_front_end, to_worker
from app.messages.to_front_end import Answer, Outcomes, Refuse, ToFrontEnd
from app.messages.to_worker import ToWorker


@dataclass(frozen=True, slots=True)
class Parcel:
    """One encoded message for a peer. A ``passing`` one may be left out if the peer does not read, because
    another one replaces it soon."""

    peer: int
    data: bytes
    passing: bool = False


@dataclass(slots=True)
class Outbox:
    """Collects messages. All outcomes for a front end go into one message per turn."""

    _parcels: list[Parcel] = field(default_factory=list)
    _outcomes: dict[int, Outcomes] = field(default_factory=dict)

    def tell_front_end(self, peer: int, message: ToFrontEnd, *, passing: bool = False) -> None:
        """A message for a front end."""
        self._parcels.append(Parcel(peer, to_front_end.encode(message), passing))

    def tell_worker(self, peer: int, message: ToWorker) -> None:
        """A message for a worker."""
        self._parcels.append(Parcel(peer, to_worker.encode(message)))

    def answer(self, peer: int, answer: Answer) -> None:
        """One image's answer."""
        self._outcomes_of(peer).answers.append(answer)

    def refuse(self, peer: int, refusal: Refuse) -> None:
        """One image's refusal."""
        self._outcomes_of(peer).refusals.append(refusal)

    def take(self) -> list[Parcel]:
        """Everything that was collected since the last call."""
        for peer, outcomes in self._outcomes.items():
            self.tell_front_end(peer, outcomes)
        parcels, self._parcels, self._outcomes = self._parcels, [], {}
        return parcels

    def _outcomes_of(self, peer: int) -> Outcomes:
        found = self._outcomes.get(peer)
        if found is None:
            found = self._outcomes[peer] = Outcomes([], [])
        return found
