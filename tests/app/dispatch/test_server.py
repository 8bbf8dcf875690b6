"""The dispatcher's sockets: real connections, nonsense and slow readers included."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.dispatch.policy.batches import QueueLimits
from app.dispatch.process import run
from app.messages.to_dispatcher import Alive, FrontEnd
from app.messages.to_front_end import Answer
from tests.app.dispatch.rig import (
    ONE_AT_A_TIME,
    FakeBackend,
    FrontEndPeer,
    House,
    WorkerPeer,
    hello,
    noise,
    running_dispatcher,
    running_worker,
    served,
    wait_for,
)


def test_an_image_goes_all_the_way(house: House) -> None:
    """From a front end's slot through a worker to the answer."""
    with served(house, FakeBackend()), FrontEndPeer(house) as peer:
        peer.wait_until_ready()
        peer.submit(4)
        answer = peer.hear()
        assert isinstance(answer, Answer)
        assert (answer.id, answer.prediction.classes[0]) == (4, 4)


def test_stop_finishes_what_was_accepted(house: House) -> None:
    """Images that wait or are computed when the dispatcher is told to stop are answered before it ends."""
    backend = FakeBackend(ONE_AT_A_TIME)
    backend.may_answer.clear()
    with running_dispatcher(house) as running, running_worker(house, backend), FrontEndPeer(house) as peer:
        peer.wait_until_ready()
        for number in (1, 2, 3):
            peer.submit(number)
        assert backend.next_batch() == [1]
        wait_for(lambda: " 3 images" in repr(running.dispatcher), "all to come")
        running.server.stop()
        backend.may_answer.set()
        assert [peer.hear().id for _ in range(3)] == [1, 2, 3]
        assert running.running.ended()


def test_a_successor_listens_where_its_predecessor_was_killed(house: House) -> None:
    """The socket that it left behind is in nobody's way."""
    house.path.touch()
    with running_dispatcher(house), FrontEndPeer(house) as peer:
        peer.take_next()


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc1\xc1", b"GET / HTTP/1.1\r\n\r\n", noise([1, 2, 3]), noise({"type": "Batch"})],
    ids=repr,
)
def test_nonsense_is_passed_over(house: House, frame: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a peer sends in a frame, it is logged, and the peer and the others are answered."""
    with served(house, FakeBackend()), FrontEndPeer(house) as peer, FrontEndPeer(house) as other:
        for one in (peer, other):
            one.wait_until_ready()
        peer.send(frame)
        for one in (peer, other):
            one.submit(3)
            assert isinstance(one.hear(), Answer)
    assert "invalid message from another process" in caplog.text


def test_a_flood_of_nonsense_is_told_once(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """A peer that sends thousands of frames that are no message cannot fill the log, and delays nobody."""
    with served(house, FakeBackend()), FrontEndPeer(house) as peer, FrontEndPeer(house) as other:
        other.wait_until_ready()
        for _ in range(5000):
            peer.send(b"\xc1\xc1")
        other.submit(3)
        assert isinstance(other.hear(), Answer)
        peer.submit(3)
        assert isinstance(peer.hear(), Answer)
    assert caplog.text.count("invalid message from another process") == 1
    assert "Traceback" not in caplog.text


def test_a_peer_that_cannot_be_understood_is_hung_up_on(house: House) -> None:
    """No frames, or what may not be said: nothing that follows could be trusted. The others go on."""
    with served(house, FakeBackend()), FrontEndPeer(house) as other:
        with FrontEndPeer(house) as peer:
            peer.send_raw(b"\xff" * 64)
            assert peer.hung_up()
        with FrontEndPeer(house, introduced=False) as peer:
            peer.say(Alive())
            assert peer.hung_up()
        with FrontEndPeer(house) as peer:
            peer.say(FrontEnd(0))
            assert peer.hung_up()
        other.wait_until_ready()
        other.submit(3)
        assert isinstance(other.hear(), Answer)


def test_a_front_end_that_does_not_read_delays_nobody_and_gets_every_answer(house: House) -> None:
    """Answers wait for it; what is told again and again is left out meanwhile."""
    with running_dispatcher(house, QueueLimits(10_000)) as running, WorkerPeer(house) as worker:
        with FrontEndPeer(house) as slow, FrontEndPeer(house) as other:
            other.wait_until_ready()
            images = 4000
            for number in range(images):
                slow.submit(number, logits=True, kept_patches=True)
            answered = 0
            while answered < images:
                batch = worker.next_batch()
                worker.answer(batch)
                answered += len(batch.images)
            other.submit(1)
            worker.answer(worker.next_batch())
            assert isinstance(other.hear(), Answer)
            assert {slow.hear().id for _ in range(images)} == set(range(images))
        wait_for(lambda: "0 front ends" in repr(running.dispatcher), "both to be gone")


_FRONT_END = """
import sys, time
from pathlib import Path
from tests.app.dispatch.rig import FrontEndPeer, House

house = House(Path(sys.argv[1]))
with FrontEndPeer(house) as peer:
    peer.wait_until_ready()
    for number in range(2, 42):
        peer.submit(number)
    print("sent", flush=True)
    time.sleep(600)
"""


def test_a_killed_front_end_is_missed_at_once(house: House) -> None:
    """kill -9 of a process with a full queue frees its places, and nobody has to look for it."""
    backend = FakeBackend(ONE_AT_A_TIME)
    with served(house, backend) as dispatcher, FrontEndPeer(house) as peer:
        peer.wait_until_ready()
        backend.may_answer.clear()
        peer.submit(1)
        assert backend.next_batch() == [1]
        command = [sys.executable, "-c", _FRONT_END, str(house.path.parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as front_end:
            assert front_end.stdout is not None
            assert front_end.stdout.readline() == "sent\n"
            wait_for(lambda: "2 front ends, 1 workers, 41 images" in repr(dispatcher), "all to come")
            front_end.kill()
        wait_for(lambda: "1 front ends, 1 workers, 1 images" in repr(dispatcher), "the places to be free")
        backend.may_answer.set()
        assert peer.hear().id == 1
    assert backend.numbers == [1]


def test_a_worker_that_is_turned_away_does_not_stop_the_others(house: House) -> None:
    """Its connection ends; it may come again."""
    import msgspec

    from tests.app.fakes import MODEL

    other = hello("worker-1", info=msgspec.structs.replace(MODEL, name="other"))
    with served(house, FakeBackend()) as dispatcher, FrontEndPeer(house) as peer:
        peer.wait_until_ready()
        with WorkerPeer(house, other) as turned_away, pytest.raises((EOFError, ConnectionError)):
            turned_away.next()
        assert "1 workers" in repr(dispatcher)


def test_the_process_needs_a_place_to_listen(tmp_path: Path) -> None:
    """Where there is none it ends, and says why."""
    from app.settings.settings import Settings

    with pytest.raises(OSError, match="No such file or directory"):
        run(Settings(), tmp_path / "nowhere" / "dispatcher")


def test_an_idle_dispatcher_sleeps(house: House) -> None:
    """It takes a few turns a second, not thousands."""
    with running_dispatcher(house) as running, FrontEndPeer(house) as peer:
        peer.take_next()
        before = time.process_time()
        for _ in range(3):
            peer.take_next()
        assert time.process_time() - before < 1
        assert running.dispatcher.idle
