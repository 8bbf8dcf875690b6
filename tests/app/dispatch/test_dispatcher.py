"""The dispatcher's decisions, without sockets and clock: messages in, messages out."""

import logging
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from app.dispatch.dispatcher import Dispatcher
from app.dispatch.fleet import Unexpected
from app.dispatch.policy.agreement import Agreement
from app.dispatch.policy.batches import QueueLimits
from app.messages import to_front_end, to_worker
from app.messages.capacity import Limits, Measured, Work
from app.messages.to_dispatcher import (
    Alive,
    Cancel,
    Checked,
    Done,
    FrontEnd,
    Held,
    Submit,
    ToDispatcher,
)
from app.messages.to_front_end import Answer, Load, Models, Outcomes, Refuse, Workers
from app.messages.to_worker import Batch, Check
from app.telemetry import tallies
from models.schedule import Pruning, compute
from tests.app.dispatch.rig import ONE_AT_A_TIME, ONE_STREAM, QUEUE, found, hello, measured, record
from tests.app.fakes import LARGER, MODEL

FRONT, OTHER = 1, 2  # front ends' connections
WORKER, SECOND = 11, 12  # workers' connections
SLOTS = 1000


class Talk:
    """A dispatcher with a clock that stands still, and what it has told each peer."""

    def __init__(self, limits: QueueLimits = QUEUE, **options: Any) -> None:
        self.dispatcher = Dispatcher(limits, SLOTS, **options)
        self.now = 100.0
        self.told: dict[int, list[Any]] = {}

    def come(self, peer: int, *messages: ToDispatcher) -> None:
        """These messages come, and a turn is taken."""
        for message in messages:
            self.dispatcher.received(peer, message, self.now)
        self.turn()

    def front_end(self, peer: int = FRONT) -> None:
        self.come(peer, FrontEnd(peer))

    def worker(self, peer: int = WORKER, limits: Limits = ONE_STREAM, **changes: Any) -> None:
        self.come(peer, hello(f"worker-{peer}", limits, **changes))

    def ask(self, *numbers: int, peer: int = FRONT, **changes: Any) -> None:
        self.come(peer, Submit([record(number, **changes) for number in numbers]))

    def gone(self, peer: int) -> None:
        self.dispatcher.gone(peer)
        self.turn()

    def turn(self, passed_s: float = 0.0, *, stopping: bool = False) -> float:
        self.now += passed_s
        due = self.dispatcher.turn(self.now, stopping=stopping)
        for parcel in self.dispatcher.outbox.take():
            decode = to_worker.decode if parcel.peer > 10 else to_front_end.decode
            self.told.setdefault(parcel.peer, []).append(decode(parcel.data))
        return due

    def heard(self, peer: int, kind: type) -> list[Any]:
        """What the peer was told of that kind since the last call."""
        mine = self.told.get(peer, [])
        self.told[peer] = [message for message in mine if not isinstance(message, kind)]
        return [message for message in mine if isinstance(message, kind)]

    def batches(self, peer: int = WORKER) -> list[Batch]:
        return self.heard(peer, Batch)

    def batch(self, peer: int = WORKER) -> Batch:
        (batch,) = self.batches(peer)
        return batch

    def answer(self, batch: Batch, peer: int = WORKER) -> None:
        """With the slots as first labels."""
        results = [found(order.ask, order.slot) for order in batch.images]
        self.come(peer, Done(batch.number, results, 0.01, len(results)))

    def outcomes(self, peer: int = FRONT) -> list[Answer | Refuse]:
        said = self.heard(peer, Outcomes)
        return [one for message in said for one in (*message.answers, *message.refusals)]

    def answered(self, peer: int = FRONT) -> list[int]:
        """The images of which all outcomes were answers."""
        outcomes = self.outcomes(peer)
        assert all(isinstance(one, Answer) for one in outcomes), outcomes
        return [one.id for one in outcomes]


def slots(batch: Batch) -> list[int]:
    return [order.slot for order in batch.images]


def talk(limits: Limits = ONE_STREAM, queue: QueueLimits = QUEUE, **options: Any) -> Talk:
    """A front end and a worker are there."""
    made = Talk(queue, **options)
    made.front_end()
    made.worker(limits=limits)
    return made


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


# The way of an image.


def test_an_image_goes_to_a_worker_and_its_answer_back() -> None:
    """With what was asked, where its pixels are, and what was found."""
    with_one = talk()
    with_one.ask(7, slot=5, keep_ratio=0.5, reducer="fuse", kept_patches=True, logits=True, top_k=2)
    batch = with_one.batch()
    (order,) = batch.images
    assert (order.slot, order.hold) == (5, None)
    assert order.ask.pruning == Pruning(0.5, "variance", "fuse")
    assert (order.ask.top_k, order.ask.kept_patches, order.ask.logits, order.ask.margin) == (
        2,
        True,
        True,
        None,
    )
    with_one.now += 0.25
    with_one.answer(batch)
    (answer,) = with_one.outcomes()
    assert answer == Answer(7, found(order.ask, 5), queue_s=0.0, compute_s=0.01)
    assert with_one.dispatcher.idle


def test_what_comes_while_a_worker_computes_goes_together() -> None:
    """A batch forms by itself, and each front end gets one message with its answers."""
    both = talk()
    both.front_end(OTHER)
    both.ask(1)
    first = both.batch()
    both.ask(2, 3)
    both.ask(2, 4, peer=OTHER)
    assert both.batches() == []
    both.answer(first)
    assert both.answered() == [1]
    second = both.batch()
    assert sorted(slots(second)) == [2, 2, 3, 4]
    both.answer(second)
    assert len(both.told[FRONT]) - len(both.heard(FRONT, Load)) - len(both.heard(FRONT, Workers)) == 2
    assert both.answered() == [2, 3]
    assert both.answered(OTHER) == [2, 4]


def test_a_batch_is_one_message() -> None:
    """However many images it has."""
    one = talk()
    one.ask(*range(50))
    batch = one.batch()
    assert len(batch.images) == 50
    assert (batch.threads, batch.tokens) == (1, 50 * 17)


def test_an_image_that_a_cascade_is_unsure_of_says_so() -> None:
    """The margin reaches the worker."""
    one = talk()
    one.ask(1, keep_ratio=0.5, margin=0.25)
    assert one.batch().images[0].ask.margin == 0.25


def test_a_lowered_image_says_why() -> None:
    """In a brown-out an image that allows it is computed at a lower ratio, others are not."""
    crowded = Talk(QueueLimits(1000, 0.05))
    crowded.front_end()
    by_compute = tuple(
        Measured(1, Work(images, images * share), 0.001 * images * share)
        for images in (1, 4)
        for share in (1.0, 0.5)
    )
    crowded.worker(limits=Limits(17, 1, 1), measured=by_compute)
    crowded.ask(*range(1, 61), min_keep_ratio=0.1, caller="a")
    crowded.ask(61, caller="b")
    lowered = set()
    while batches := crowded.batches():
        for batch in batches:
            asked = {order.slot: order.ask.pruning.keep_ratio for order in batch.images}
            assert asked.get(61, 1.0) == 1.0
            crowded.answer(batch)
            for outcome in crowded.outcomes():
                if isinstance(outcome, Answer) and outcome.lowered is not None:
                    assert outcome.lowered == "brown-out"
                    lowered.add(outcome.id)
    assert lowered


# Refusals.


def test_a_full_queue_refuses_and_what_waits_is_still_answered() -> None:
    """An image too many is refused at once, and costs nobody else their answer."""
    full = talk(ONE_AT_A_TIME, QueueLimits(2))
    full.ask(1)
    full.ask(2, 3, 4)
    (refused,) = full.outcomes()
    assert isinstance(refused, Refuse)
    assert (refused.id, refused.reason) == (4, "queue-full")
    assert refused.retry_after_s is not None
    assert 0 < refused.retry_after_s < 30
    for _ in range(3):
        full.answer(full.batch())
    assert full.answered() == [1, 2, 3]


def test_an_image_whose_deadline_passes_is_refused_and_never_computed() -> None:
    """The dispatcher wakes for it, whoever else says nothing."""
    late = talk(ONE_AT_A_TIME)
    late.ask(1)
    late.ask(2, deadline_s=0.25)
    late.ask(3, deadline_s=-1.0)
    assert late.outcomes() == [Refuse(3, "deadline-passed", 1.0)]
    due = late.turn()
    assert 0 < due <= 0.25
    late.turn(0.26)
    assert late.outcomes() == [Refuse(2, "deadline-passed", 1.0)]
    late.answer(late.batch())
    assert late.batches() == []


def test_a_withdrawn_image_is_not_computed() -> None:
    """Withdrawing what waits frees its place; what is computed, or unknown, does no harm, and is answered to
    nobody."""
    one = talk(ONE_AT_A_TIME)
    one.ask(1)
    one.ask(2, 3)
    one.come(FRONT, Cancel([2, 1, 99]))
    one.answer(one.batch())
    assert one.answered() == []
    batch = one.batch()
    assert slots(batch) == [3]
    one.answer(batch)
    assert one.answered() == [3]
    assert one.dispatcher.idle


def test_a_slot_that_there_is_not_is_refused_before_it_reaches_a_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor do pixels of another size, which would fail the images beside them."""
    one = talk()
    one.ask(1, slot=SLOTS)
    one.ask(2, size=MODEL.pixel_bytes - 1)
    one.ask(3, model="unheard-of")
    assert one.outcomes() == [Refuse(number, "worker-fault", 1.0) for number in (1, 2, 3)]
    assert one.batches() == []
    assert "a front end sent slot number 1000, but there are 1000 slots" in caplog.text
    assert "an image has 2204 bytes of pixels for the model toy, which needs 2205 bytes" in caplog.text
    assert "an image has 2205 bytes of pixels for the model unheard-of, which is not loaded" in caplog.text


@pytest.mark.parametrize("fault", ["out-of-memory", "worker-fault", "no-number"])
def test_what_a_worker_cannot_compute_is_refused_alone(fault: str) -> None:
    """The images beside it are answered."""
    one = talk()
    one.ask(1, 2)
    batch = one.batch()
    results = [found(order.ask, 1) if order.slot == 1 else fault for order in batch.images]
    one.come(WORKER, Done(batch.number, results, 0.01, 1))  # type: ignore[arg-type]
    answer, refusal = one.outcomes()
    assert answer.id == 1
    assert refusal == Refuse(2, fault, 1.0)


def test_smaller_batches_follow_one_that_did_not_fit_into_memory() -> None:
    """At that worker, and no larger than what fitted."""
    one = talk()
    before = metric("trimvit_out_of_memory_total")
    one.ask(*range(8))
    batch = one.batch()
    results = [found(order.ask, 1) for order in batch.images]
    one.come(WORKER, Done(batch.number, results, 0.01, 2, memory_was_short=True))
    one.ask(11)
    first = one.batch()
    one.ask(*range(12, 18))
    one.answer(first)
    assert len(one.batch().images) == 2
    assert metric("trimvit_out_of_memory_total") == before + 1


# Workers come and go.


def test_images_wait_for_the_first_worker() -> None:
    """In order, and no more of them than the queue holds."""
    early = Talk(QueueLimits(3))
    early.front_end()
    early.ask(1, 2, 3, 4)
    assert early.outcomes() == [Refuse(4, "queue-full", 1.0)]
    assert "3 without a worker" in repr(early.dispatcher)
    early.worker()
    assert slots(early.batch()) == [1, 2, 3]


def test_patience_and_deadlines_end_while_there_is_no_worker() -> None:
    """Each image is told what it waited for in vain."""
    early = Talk(patience_s=10.0)
    early.front_end()
    early.ask(1)
    early.ask(2, deadline_s=4.0)
    assert early.turn() <= 4.0
    early.turn(4.5)
    assert early.outcomes() == [Refuse(2, "deadline-passed", 1.0)]
    early.turn(5.0)
    assert early.outcomes() == []
    early.turn(1.0)
    assert early.outcomes() == [Refuse(1, "not-ready", 1.0)]


def test_an_image_that_was_prepared_for_another_model_is_refused_when_the_worker_comes() -> None:
    """Its pixels have another size."""
    early = Talk()
    early.front_end()
    early.ask(1, size=27)
    early.ask(2)
    early.worker()
    assert early.outcomes() == [Refuse(1, "worker-fault", 1.0)]
    assert slots(early.batch()) == [2]


def test_front_ends_are_told_the_model_once() -> None:
    """And how the workers are, again and again, as a sign of life."""
    one = talk()
    one.front_end(OTHER)
    for _ in range(10):
        one.turn(0.5)
    for peer in (FRONT, OTHER):
        assert one.heard(peer, Models) == [Models([MODEL])]
        states = one.heard(peer, Workers)
        assert len(states) >= 10
        (state,) = states[0 if peer == OTHER else 1].workers
        assert (state.name, state.device, state.ready) == ("worker-11", "cpu:0", True)


def test_what_a_lost_worker_had_waiting_goes_to_its_successor() -> None:
    """Waiting is no ground for suspicion, however many workers die; what was computed is tried alone."""
    one = talk(ONE_AT_A_TIME)
    one.ask(1)
    one.ask(2, 3)
    one.gone(WORKER)
    assert one.outcomes() == []
    one.worker(SECOND, Limits(1000, 2, 2))
    first = one.batch(SECOND)
    assert slots(first) == [1], "the suspect is alone"
    assert one.batches(SECOND) == []
    one.answer(first, SECOND)
    both = one.batches(SECOND)
    assert [slots(batch) for batch in both] == [[2], [3]]
    for batch in both:
        one.answer(batch, SECOND)
    assert one.answered() == [1, 2, 3]


def test_an_image_that_two_workers_died_computing_is_refused() -> None:
    """And a third does not get it; the others of its batch are answered."""
    one = talk()
    before = metric("trimvit_images_sent_again_total")
    one.ask(1, 2, 3)
    assert len(one.batch().images) == 3
    one.gone(WORKER)
    one.worker(SECOND)
    one.answer(one.batch(SECOND), SECOND)
    assert slots(one.batch(SECOND)) == [2]
    one.gone(SECOND)
    one.worker(13)
    outcomes = one.outcomes()
    assert Refuse(2, "worker-lost", None) in outcomes
    last = one.batch(13)
    assert slots(last) == [3]
    one.answer(last, 13)
    assert one.answered() == [3]
    assert metric("trimvit_images_sent_again_total") == before + 3


def test_a_suspect_waits_until_its_worker_is_idle_and_nothing_runs_beside_it() -> None:
    """Another worker goes on with everybody else's images meanwhile."""
    two = talk(Limits(17, 2, 2))
    two.worker(SECOND, Limits(17, 2, 2))
    two.ask(1, 2, 3, 4, 5, 6)
    by_worker = {peer: two.batches(peer) for peer in (WORKER, SECOND)}
    assert [len(batches) for batches in by_worker.values()] == [2, 2]
    lost = [slot for batch in by_worker[WORKER] for slot in slots(batch)]
    two.gone(WORKER)
    two.answer(by_worker[SECOND][0], SECOND)
    assert two.batches(SECOND) == [], "it still computes another image"
    two.answer(by_worker[SECOND][1], SECOND)
    for suspect in lost:
        trial = two.batch(SECOND)
        assert slots(trial) == [suspect]
        two.turn(0.1)
        assert two.batches(SECOND) == []
        two.answer(trial, SECOND)
    rest = two.batches(SECOND)
    assert len(rest) == 2
    for batch in rest:
        two.answer(batch, SECOND)
    assert sorted(two.answered()) == [1, 2, 3, 4, 5, 6]


def test_a_suspect_that_is_withdrawn_is_not_tried() -> None:
    """What waited goes on."""
    one = talk(ONE_AT_A_TIME)
    one.ask(1)
    one.ask(2)
    one.gone(WORKER)
    one.come(FRONT, Cancel([1]))
    one.worker(SECOND)
    assert slots(one.batch(SECOND)) == [2]


def test_a_withdrawn_image_that_a_worker_died_computing_is_forgotten() -> None:
    """Nobody computes it again."""
    one = talk()
    one.ask(1)
    one.come(FRONT, Cancel([1]))
    one.gone(WORKER)
    one.worker(SECOND)
    assert one.batches(SECOND) == []
    assert one.dispatcher.idle


def test_a_worker_that_says_nothing_gets_no_batch_until_it_speaks() -> None:
    """Stopped, or starved: the front ends are told that it is not ready."""
    one = talk()
    one.heard(FRONT, Workers)
    one.turn(3.5)
    one.ask(1)
    assert one.batches() == []
    assert not one.heard(FRONT, Workers)[-1].workers[0].ready
    one.come(WORKER, Alive())
    assert slots(one.batch()) == [1]
    assert one.heard(FRONT, Workers)[-1].workers[0].ready


def test_several_workers_share_one_queue() -> None:
    """Each gets what it can compute at once; whoever is done first gets the next image."""
    two = talk(ONE_AT_A_TIME)
    two.worker(SECOND, ONE_AT_A_TIME)
    two.ask(1, 2, 3, 4)
    first, second = two.batch(), two.batch(SECOND)
    assert sorted(slots(first) + slots(second)) == [1, 2]
    two.answer(second, SECOND)
    third = two.batch(SECOND)
    two.answer(third, SECOND)
    two.answer(two.batch(SECOND), SECOND)
    two.answer(first)
    assert sorted(two.answered()) == [1, 2, 3, 4]


def test_a_worker_with_another_model_is_turned_away_until_the_others_have_gone() -> None:
    """A front end must not be told labels of another model than its image was computed with."""
    one = talk()
    other = msgspec.structs.replace(MODEL, name="other")
    with pytest.raises(Unexpected, match="worker-12 has loaded other models"):
        one.worker(SECOND, info=other)
    one.heard(FRONT, Models)
    one.gone(WORKER)
    one.worker(SECOND, info=other)
    assert one.heard(FRONT, Models) == [Models([other])]


def test_a_worker_on_another_device_is_welcome() -> None:
    """Its answers are the same."""
    one = talk()
    one.worker(SECOND, info=msgspec.structs.replace(MODEL, device="cuda:1"))
    one.turn(0.5)
    devices = [worker.device for worker in one.heard(FRONT, Workers)[-1].workers]
    assert devices == ["cpu:0", "cuda:1"]


def test_what_an_earlier_dispatcher_had_accepted_is_not_refused_for_want_of_a_place() -> None:
    """Front ends send more than the queue holds, for some of it was being computed: all of it is computed,
    whether the workers come before or after; new images are refused meanwhile."""
    for workers_first in (True, False):
        one = Talk(QueueLimits(2))
        one.front_end()
        if workers_first:
            one.worker(limits=ONE_AT_A_TIME)
        one.ask(1, 2, 3, 4, 5, again=True)
        one.ask(6)
        (refused,) = one.outcomes()
        assert isinstance(refused, Refuse)
        assert (refused.id, refused.reason) == (6, "queue-full")
        if not workers_first:
            one.worker(limits=ONE_AT_A_TIME)
        for _ in range(5):
            one.answer(one.batch())
        assert one.answered() == [1, 2, 3, 4, 5]


def test_what_waited_when_the_last_worker_died_keeps_its_place() -> None:
    """Although the next worker is predicted to be so slow that it would be refused, had it come now."""
    one = talk(ONE_AT_A_TIME, QueueLimits(100, 0.05))
    one.ask(1, 2, 3)
    one.gone(WORKER)
    slow = tuple(Measured(1, Work(images, images), 10.0 * images) for images in (1, 2))
    one.worker(SECOND, ONE_AT_A_TIME, measured=slow)
    for _ in range(3):
        one.answer(one.batch(SECOND), SECOND)
    assert one.answered() == [1, 2, 3]


# Front ends go.


def test_what_a_lost_front_end_had_is_dropped() -> None:
    """Its images leave the queue, its suspects too; what is being computed for it is answered to nobody, and
    its successor, which counts from 1 again, hears nothing of it."""
    two = talk(ONE_AT_A_TIME)
    two.front_end(OTHER)
    two.ask(1, peer=OTHER)
    two.ask(2, 3, peer=OTHER)
    two.ask(2)
    running = two.batch()
    two.gone(OTHER)
    assert "1 front ends, 1 workers, 1 images" in repr(two.dispatcher)
    two.front_end(3)
    two.ask(1, peer=3, slot=77)
    two.answer(running)
    assert two.answered(3) == []
    two.answer(two.batch())
    two.answer(two.batch())
    assert (two.answered(), two.answered(3)) == ([2], [1])
    assert two.dispatcher.idle


def test_front_ends_with_the_same_numbers_get_each_its_own_answer() -> None:
    """Images are numbered by every front end for itself."""
    two = talk()
    two.front_end(OTHER)
    two.ask(1, slot=3)
    two.answer(two.batch())
    two.ask(1, slot=8, peer=OTHER)
    two.answer(two.batch())
    for peer, slot in ((FRONT, 3), (OTHER, 8)):
        (answer,) = two.outcomes(peer)
        assert isinstance(answer, Answer)
        assert answer.prediction.classes[0] == slot


def test_a_storm_of_withdrawn_images_leaves_nothing_behind() -> None:
    """Five thousand images that are withdrawn right after they came leave no image and no place."""
    one = talk(ONE_AT_A_TIME, QueueLimits(10_000, 1e6))
    one.ask(1)
    running = one.batch()
    for number in range(2, 5002):
        one.dispatcher.received(
            FRONT, Submit([record(number, slot=1, caller=f"caller {number}", deadline_s=1e6)]), one.now
        )
        one.dispatcher.received(FRONT, Cancel([number]), one.now)
    one.turn()
    assert "1 images, 0 suspects, 0 without a worker, <Scheduler 0 waiting (0 tokens)" in repr(one.dispatcher)
    one.answer(running)
    assert one.answered() == [1]
    assert one.dispatcher.idle


# What may not be said.


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        (77, Submit([record(1)])),
        (77, Alive()),
        (FRONT, FrontEnd(1)),
        (FRONT, Alive()),
        (FRONT, hello()),
        (WORKER, hello()),
        (WORKER, FrontEnd(1)),
        (WORKER, Cancel([1])),
        (WORKER, Done(77, [], 0.0, 0)),
    ],
    ids=str,
)
def test_what_a_peer_may_not_say_ends_its_connection(peer: int, message: ToDispatcher) -> None:
    """It is out of order, so nothing that it says is of use."""
    with pytest.raises(Unexpected):
        talk().come(peer, message)


def test_a_front_end_may_not_send_an_image_twice() -> None:
    """On one connection; on the next one it may."""
    one = talk()
    one.ask(1)
    with pytest.raises(Unexpected, match="twice"):
        one.ask(1)


def test_a_wrong_number_of_results_goes_to_nobody() -> None:
    """One result too few must not be dealt out to the wrong images: the batch is tried again."""
    one = talk()
    one.ask(1, 2)
    batch = one.batch()
    with pytest.raises(Unexpected, match="a batch of 2 images has 1 results"):
        one.come(WORKER, Done(batch.number, [found(batch.images[0].ask, 1)], 0.01, 1))
    one.gone(WORKER)
    one.worker(SECOND)
    one.answer(one.batch(SECOND), SECOND)
    one.answer(one.batch(SECOND), SECOND)
    assert one.answered() == [1, 2]


# Agreement.


def agreeing() -> Talk:
    return talk(agreement=Agreement(1.0, lambda: 0.0))


def test_an_answered_image_is_run_again_unpruned_once_nothing_else_is_to_be_done() -> None:
    """The worker is told to hold its pixels, and then to run them."""
    one = agreeing()
    labels = {"ratio_bucket": "0.4-0.5", "outcome": "agreed"}
    before = metric("trimvit_agreement_checks_total", **labels)
    one.ask(1, keep_ratio=0.5)
    first = one.batch()
    one.ask(2, keep_ratio=0.5)
    one.ask(3)
    one.answer(first)
    assert one.heard(WORKER, Check) == []
    second = one.batch()
    assert [order.hold is None for order in second.images] == [False, True], "what is not pruned agrees"
    one.answer(second)
    holds = []
    for label in (1, 2):
        (check,) = one.heard(WORKER, Check)
        holds.append(check.hold)
        one.come(WORKER, Checked(check.hold, label))
    assert holds == [first.images[0].hold, second.images[0].hold]
    assert one.heard(WORKER, Check) == []
    assert metric("trimvit_agreement_checks_total", **labels) == before + 2


def test_a_check_that_failed_or_was_lost_counts_for_nothing() -> None:
    """The next ones are run all the same."""
    one = agreeing()
    labels = {"ratio_bucket": "0.4-0.5", "outcome": "agreed"}
    before = metric("trimvit_agreement_checks_total", **labels)
    one.ask(1, keep_ratio=0.5)
    one.answer(one.batch())
    (check,) = one.heard(WORKER, Check)
    one.come(WORKER, Checked(check.hold, None))
    one.ask(2, keep_ratio=0.5)
    one.answer(one.batch())
    assert len(one.heard(WORKER, Check)) == 1
    one.gone(WORKER)
    one.worker(SECOND)
    one.ask(3, keep_ratio=0.5)
    one.answer(one.batch(SECOND), SECOND)
    (check,) = one.heard(SECOND, Check)
    one.come(SECOND, Checked(check.hold, 3))
    assert metric("trimvit_agreement_checks_total", **labels) == before + 1


def test_nothing_is_checked_while_the_dispatcher_stops() -> None:
    """It ends as soon as everything accepted has had its outcome."""
    one = agreeing()
    one.ask(1, keep_ratio=0.5)
    batch = one.batch()
    one.dispatcher.received(WORKER, Done(batch.number, [found(batch.images[0].ask, 1)], 0.01, 1), one.now)
    one.turn(stopping=True)
    assert one.dispatcher.idle
    assert one.heard(WORKER, Check) == []


# Load.


def test_front_ends_are_told_of_the_load_when_it_changes() -> None:
    """At most twenty times a second, and counting what each has sent."""
    two = talk(ONE_AT_A_TIME)
    two.front_end(OTHER)
    two.turn(0.1)
    for peer in (FRONT, OTHER):
        assert two.heard(peer, Load)[-1].idle
    two.ask(*range(1, 6))
    assert 0 < two.turn() <= 0.05
    two.turn(0.06)
    mine, others = two.heard(FRONT, Load), two.heard(OTHER, Load)
    assert [load.seen for load in (mine[-1], others[-1])] == [5, 0]
    assert not mine[-1].idle
    assert mine[-1].work_s["normal"] > 0
    two.turn(0.06)
    assert two.heard(FRONT, Load) == []


def test_the_gauges_show_what_waits() -> None:
    """Images, tokens and seconds in the queue, and no brown-out."""
    one = talk(ONE_AT_A_TIME)
    one.ask(1, 2, 3)
    one.turn(0.1)
    assert metric("trimvit_queue_images") == 2
    assert metric("trimvit_queue_tokens") == 2 * 17
    assert metric("trimvit_queue_seconds") == pytest.approx(0.002, rel=0.1)
    assert metric("trimvit_queue_limit_images") == QUEUE.images
    assert metric("trimvit_brown_out_ratio") == 1


def test_batches_are_counted_a_few_times_a_second_and_soon_when_all_is_answered() -> None:
    """Not for each batch: that takes longer than to decide what is in it. Who reads the metrics waits a
    moment, so that whoever has all answers finds all of them counted."""
    one = talk(ONE_AT_A_TIME)
    before = metric("trimvit_batch_images_sum")
    one.ask(1, 2, 3)
    one.answer(one.batch())
    assert metric("trimvit_batch_images_sum") == before
    one.turn(0.2)
    assert 0 < one.turn() <= 0.05
    one.turn(0.06)
    assert metric("trimvit_batch_images_sum") == before + 1
    one.answer(one.batch())
    assert metric("trimvit_batch_images_sum") == before + 1
    one.answer(one.batch())
    assert metric("trimvit_batch_images_sum") == before + 1
    assert 0 < one.turn() < tallies.LATEST_S
    one.turn(tallies.LATEST_S)
    assert metric("trimvit_batch_images_sum") == before + 3


def test_batches_are_counted_before_it_ends() -> None:
    """There is no later turn to do so."""
    one = talk(ONE_AT_A_TIME)
    before = metric("trimvit_batch_images_sum")
    one.ask(1)
    one.answer(one.batch())
    one.turn(stopping=True)
    assert metric("trimvit_batch_images_sum") == before + 1


def test_a_lone_image_has_all_threads_and_others_share_them() -> None:
    """Two streams hold a batch each at once."""
    one = talk(Limits(17, 3, 2))
    one.ask(1)
    lone = one.batch()
    assert lone.threads == 3
    one.ask(2, 3)
    assert one.batches() == [], "a stream is free, but no thread is"
    one.answer(lone)
    assert [batch.threads for batch in one.batches()] == [1, 1]


def test_queue_times_are_told() -> None:
    """From the record to the batch."""
    one = talk(ONE_AT_A_TIME)
    one.ask(1)
    first = one.batch()
    one.ask(2)
    one.now += 0.5
    one.answer(first)
    one.answer(one.batch())
    assert [round(answer.queue_s, 3) for answer in one.outcomes() if isinstance(answer, Answer)] == [0.0, 0.5]


def test_losses_are_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Which worker, and with how many images."""
    one = talk()
    one.ask(1, 2)
    with caplog.at_level(logging.WARNING):
        one.gone(WORKER)
    assert "lost the connection to worker-11 while it was computing 2 images" in caplog.text


def test_cost_is_counted_as_computed() -> None:
    """A batch's compute teaches the predictions, which stay finite and above nothing."""
    one = talk()
    for number in range(1, 20):
        one.ask(number, keep_ratio=0.5)
        one.answer(one.batch())
    one.turn(0.1)
    load = one.heard(FRONT, Load)[-1]
    share = compute(MODEL.architecture, MODEL.method.stages, 0.5)
    assert 0 < load.terms[MODEL.name].image_s + share * load.terms[MODEL.name].compute_s < 1


# --- several models ---------------------------------------------------------------------------------
BOTH = (Held(MODEL, measured(ONE_STREAM)), Held(LARGER, measured(ONE_STREAM, 0.004)))
FOR_LARGER = {"model": LARGER.name, "size": LARGER.pixel_bytes}


def talk_of_two() -> Talk:
    """A worker holds two models."""
    one = Talk()
    one.front_end()
    one.worker(models=BOTH)
    return one


def test_front_ends_are_told_of_all_models_the_default_one_first() -> None:
    """In the order in which the worker names them."""
    assert talk_of_two().heard(FRONT, Models) == [Models([MODEL, LARGER])]


def test_a_batch_names_its_model_and_holds_no_other() -> None:
    """What waits for another model is in a batch of its own."""
    one = talk_of_two()
    one.ask(1)
    first = one.batch()
    one.ask(2, 3)
    one.ask(4, 5, **FOR_LARGER)
    one.answer(first)
    second = one.batch()
    one.answer(second)
    third = one.batch()
    one.answer(third)
    assert [(batch.model, slots(batch)) for batch in (first, second, third)] == [
        (MODEL.name, [1]),
        (MODEL.name, [2, 3]),
        (LARGER.name, [4, 5]),
    ]
    assert one.answered() == [1, 2, 3, 4, 5]


def test_an_image_of_another_models_size_is_refused() -> None:
    """Each model has its own."""
    one = talk_of_two()
    one.ask(1, model=LARGER.name)
    one.ask(2, size=LARGER.pixel_bytes)
    assert one.outcomes() == [Refuse(1, "worker-fault", 1.0), Refuse(2, "worker-fault", 1.0)]


def test_what_an_image_takes_is_learned_for_each_model() -> None:
    """From its own batches, and told front ends by its name."""
    one = talk_of_two()

    def image_s(load: Load, model: str) -> float:
        return load.terms[model].image_s + load.terms[model].compute_s

    one.turn(1.0)
    before = one.heard(FRONT, Load)[-1]
    assert list(before.terms) == [MODEL.name, LARGER.name]
    assert image_s(before, LARGER.name) == pytest.approx(4 * image_s(before, MODEL.name))
    for number in range(10):
        one.ask(number, **FOR_LARGER)
        (order,) = (batch := one.batch()).images
        one.come(WORKER, Done(batch.number, [found(order.ask, 1)], 0.04, 1))
    one.turn(1.0)
    after = one.heard(FRONT, Load)[-1]
    assert image_s(after, LARGER.name) > 1.2 * image_s(before, LARGER.name)
    assert image_s(after, MODEL.name) == image_s(before, MODEL.name)


def test_a_worker_that_holds_fewer_models_gets_no_images() -> None:
    """Nor one that has them in another order, which has another default."""
    one = talk_of_two()
    for models in (BOTH[:1], BOTH[::-1]):
        with pytest.raises(Unexpected, match="has loaded other models"):
            one.worker(WORKER + 1, models=models)


def test_a_worker_that_dies_leaves_the_images_of_all_models_to_the_next() -> None:
    """Each is computed by its own model again."""
    one = talk_of_two()
    one.ask(1, **FOR_LARGER)
    one.gone(WORKER)
    one.worker(WORKER + 1, models=BOTH)
    batch = one.batch(WORKER + 1)
    assert (batch.model, slots(batch)) == (LARGER.name, [1])
