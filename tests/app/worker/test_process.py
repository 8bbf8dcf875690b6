"""The worker process with a tiny real network: what the settings make of the checkpoint, and how it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from setproctitle import getproctitle, setproctitle

from app.messages.model import ModelInfo
from app.messages.slot_map import SlotMap
from app.messages.to_front_end import Answer
from app.processes.environment import ProcessFiles, worker_variables
from app.processes.heartbeat import Heartbeat
from app.processes.parent_death import LOAD_FAILED, SUPERVISOR_VARIABLE
from app.settings.settings import Settings
from app.worker import torch_backend
from app.worker.process import WorkerArgs, run
from models import device
from models.cascade import Cascade
from models.classifier import Classifier
from models.schedule import Method, Stages
from models.transforms import InputSpec
from tests.app.dispatch.rig import PATIENCE_S, FrontEndPeer, House, running_dispatcher

LABELS = ("one", "two", "three")
SIZE = (32, 48)
CASCADE = Cascade(0.5, "mad", "merge", margin=1.0, agreement=0.9, images=50, compute=1.25)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of four narrow blocks with a card that prunes in the second by a method of its own, reads
    all rows, and has a cascade that is never sure."""
    import timm

    from models.load import Card, save

    arguments = {"img_size": SIZE, "embed_dim": 96, "depth": 4, "num_classes": len(LABELS)}
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, **arguments)
    card = Card(
        architecture="vit_tiny_patch16_224",
        labels=LABELS,
        input=InputSpec(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        stages=Stages((1,), "all"),
        criterion="iqr",
        reducer="fuse",
        cascade=CASCADE,
        model_args=arguments,
    )
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save(path, vit, card)
    return path


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """The worker takes over SIGTERM, the process's title and the number of compute threads."""
    import torch

    handler, threads = signal.signal(signal.SIGTERM, lambda *_: None), torch.get_num_threads()
    title = getproctitle()
    yield
    signal.signal(signal.SIGTERM, handler)
    torch.set_num_threads(threads)
    setproctitle(title)


def settings_for(checkpoint: Path, **settings: Any) -> Settings:
    return Settings(**{"model": str(checkpoint), "threads": 1, "dtype": "float32", **settings})


def slots_of(settings: Settings) -> SlotMap:
    return SlotMap.for_queue(settings.http_workers, settings.max_queue_images)


class Peer(FrontEndPeer):
    """A front end whose images have the size of this network's input, all of them black."""

    def __init__(self, house: House, settings: Settings) -> None:
        super().__init__(house, slot_map=slots_of(settings), shape=(*SIZE, 3))


def model_served(settings: Settings, house: House, learned: Path | None = None, images: int = 0) -> ModelInfo:
    """What a worker with these settings says of its model, when it has answered so many images. It runs here,
    since only a main thread may handle signals, and is asked, then told to stop, from another thread.
    """

    def ask() -> ModelInfo:
        try:
            with Peer(house, settings) as peer:
                peer.wait_until_ready()
                assert peer.models is not None
                for image in range(images):
                    peer.submit(image, picture_of=0)
                    assert isinstance(peer.hear(), Answer)
                return peer.models.infos[0]
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    with running_dispatcher(house), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        run(settings, WorkerArgs(0, "cpu", house.path, house.memory, learned=learned))
        return asked.result()


def test_an_image_is_answered_by_the_real_network_until_sigterm(
    house: House, checkpoint: Path, tmp_path: Path
) -> None:
    """The process started as the supervisor does it loads, answers, and ends with 0 on SIGTERM."""
    files = ProcessFiles(tmp_path, "worker-0")
    settings = settings_for(checkpoint)
    environment = {
        **os.environ,
        **worker_variables(files, 0, "cpu", 1, house.memory),
        SUPERVISOR_VARIABLE: str(os.getpid()),
        "TRIMVIT_SETTINGS": settings.model_dump_json(),
        "TRIMVIT_WORKER_SOCKET": str(house.path),
    }
    heartbeat = Heartbeat.made_at(files.heartbeat)
    command = [sys.executable, "-m", "app.worker.process"]
    with (
        running_dispatcher(house),
        subprocess.Popen(command, env=environment, pass_fds=(house.memory,)) as process,
    ):
        try:
            with Peer(house, settings) as peer:
                peer.wait_until_ready()
                answers = []
                for number, asked in enumerate(
                    ({}, {"reducer": "fuse"}, {"reducer": "merge"}, {"margin": 1.0})
                ):
                    peer.submit(number, picture_of=0, top_k=3, keep_ratio=0.5, **asked)
                    answers.append(peer.hear())
                peer.submit(4, picture_of=0, top_k=3, keep_mass=0.01)
                answers.append(peer.hear())
            sound = [answer for answer in answers if isinstance(answer, Answer)]
            assert sound == answers
            for answer in sound:
                assert sorted(answer.prediction.classes) == [0, 1, 2]
                assert sum(answer.prediction.scores) == pytest.approx(1.0)
            assert [answer.prediction.kept_counts for answer in sound] == [(3,), (3,), (3,), (6,), (1,)]
            assert [answer.prediction.runs for answer in sound] == [1, 1, 1, 2, 1]
            assert [answer.prediction.keep_ratio for answer in sound] == [0.5, 0.5, 0.5, 1.0, 1 / 6]
            assert heartbeat.read().ready, "the supervisor sees that it is ready"
            drop, fuse, merge, twice, mass = (answer.prediction.compute for answer in sound)
            assert mass < drop == merge < fuse < 1 < twice
            process.send_signal(signal.SIGTERM)
            assert process.wait(4 * PATIENCE_S) == 0
        finally:
            process.kill()


def test_a_model_is_served_as_its_checkpoint_says(house: House, checkpoint: Path) -> None:
    """Name, labels, input, method and cascade are the checkpoint's where the settings say nothing."""
    info = model_served(settings_for(checkpoint), house)
    assert info.name == "tiny"
    assert info.labels == LABELS
    assert info.input.size == SIZE
    assert info.method == Method(Stages((1,), "all"), "iqr", "fuse")
    assert info.cascade == CASCADE
    assert (info.device, info.dtype) == ("cpu:0", "float32")


def test_a_restart_checks_and_times_nothing_again(
    house: House, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first worker found out holds for its successors, unless they serve otherwise. They leave the
    kernels to the images that wait for them, too."""
    done: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: object) -> Any:
            done.append(name)
            return function(*arguments)

        return call

    monkeypatch.setattr(
        torch_backend, "check_against_timm", counted("check", torch_backend.check_against_timm)
    )
    monkeypatch.setattr(Classifier, "make_kernels", counted("kernels", Classifier.make_kernels))
    monkeypatch.setattr(torch_backend, "time_batches", counted("time", torch_backend.time_batches))
    learned = tmp_path / "worker-0.learned"
    first = model_served(settings_for(checkpoint), house, learned, images=1)
    assert done == ["check", "kernels", "time"]
    for _ in range(2):
        assert model_served(settings_for(checkpoint), house, learned, images=1) == first
        assert done == ["check", "kernels", "time"]
    model_served(settings_for(checkpoint, rows="cls"), house, learned)
    assert done == ["check", "kernels", "time"] * 2
    assert not learned.exists(), "a worker that has computed nothing is no example"


@pytest.mark.skipif(not device.cpu_has_int8(), reason="int8 needs a CPU with AVX2")
def test_a_model_can_be_served_in_int8(house: House, checkpoint: Path) -> None:
    """The setting reaches the network: the worker loads, warms up and says so."""
    assert model_served(settings_for(checkpoint, dtype="int8"), house).dtype == "int8"


@pytest.mark.parametrize("exact", [False, True])
def test_exact_reaches_the_network(
    house: House, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    """The setting is that of the network that computes."""
    made: list[Classifier] = []

    def classifier(*arguments: Any, **options: Any) -> Classifier:
        made.append(Classifier(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(torch_backend, "Classifier", classifier)
    model_served(settings_for(checkpoint, exact=exact), house)
    assert [each.model.exact for each in made] == [exact]


@pytest.mark.parametrize(("dtype", "told"), [("auto", True), ("float32", False)])
def test_int8_is_offered_where_it_is_faster(
    house: House,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    dtype: str,
    told: bool,
) -> None:
    """The log names the flag and its gain, unless somebody chose another dtype."""
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(device, "cpu_has_int8", lambda: True)
    caplog.set_level("INFO")
    assert model_served(settings_for(checkpoint, dtype=dtype), house).dtype == "float32"
    assert ("--dtype int8 computes 1.3 to 1.6 times" in caplog.text) == told


def test_int8_on_a_gpu_is_told_and_not_tried_again(
    house: House, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker of a GPU ends before it loads anything."""
    monkeypatch.setattr(device, "choose_device", lambda wanted: wanted)
    with pytest.raises(SystemExit) as ended:
        run(settings_for(checkpoint, dtype="int8"), WorkerArgs(0, "cuda:0", house.path, house.memory))
    assert ended.value.code == LOAD_FAILED
    (record,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert "int8 needs a CPU with AVX2, but this is cuda:0" in record.getMessage()


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({"rows": "cls"}, Stages((1,), "cls")),
        ({"stages": (1, 3)}, Stages((0, 2), "all")),
        ({"stages": (4,), "rows": "cls"}, Stages((3,), "cls")),
        ({"stages": "every"}, Stages((0, 1, 2, 3), "all", evenly=True)),
    ],
    ids=str,
)
def test_stages_and_rows_replace_the_checkpoints_each_by_itself(
    house: House, checkpoint: Path, settings: dict[str, Any], stages: Stages
) -> None:
    """What a setting does not say stays as the checkpoint has it; but not the cascade, which was fitted for
    the checkpoint's own stages and rows."""
    info = model_served(settings_for(checkpoint, **settings), house)
    assert info.method == Method(stages, "iqr", "fuse")
    assert info.cascade is None


@pytest.mark.parametrize(("patch_stride", "grid", "applied"), [(None, (2, 3), (16, 16)), (6, (3, 6), (6, 6))])
def test_the_patch_stride_of_the_settings_reaches_the_network(
    house: House,
    checkpoint: Path,
    patch_stride: int | None,
    grid: tuple[int, int],
    applied: tuple[int, int],
) -> None:
    """The grid that counts and costs follow from is the stride's, and front ends are told both."""
    info = model_served(settings_for(checkpoint, patch_stride=patch_stride), house)
    assert info.architecture.grid == grid
    assert (info.patch_size, info.patch_stride) == ((16, 16), applied)


def test_more_patches_than_an_answer_can_number_are_refused(
    house: House, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Kept patches are told as uint16; a grid beyond that is refused at the start, not wrapped around."""
    monkeypatch.setattr("app.worker.torch_backend.MOST_PATCHES", 17)
    with pytest.raises(SystemExit) as ended:
        run(settings_for(checkpoint, patch_stride=6), WorkerArgs(0, "cpu", house.path, house.memory))
    assert ended.value.code == LOAD_FAILED
    assert "it has 18 patches, but at most 17 are supported; use a larger patch stride" in caplog.text


def test_labels_of_a_file_replace_the_checkpoints(house: House, checkpoint: Path, tmp_path: Path) -> None:
    """One label a line, in class order."""
    labels = tmp_path / "labels.txt"
    labels.write_text("eins\nzwei\ndrei\n")
    assert model_served(settings_for(checkpoint, labels=labels), house).labels == ("eins", "zwei", "drei")


def test_a_network_whose_scores_overflow_is_refused_at_the_start(
    house: House, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """float16 ends at 65,504: a network that needs more would answer NaN."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "loud.safetensors"
    with safe_open(checkpoint, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tensors["norm.bias"] = tensors["norm.bias"].float() + 60_000
        tensors["head.weight"] = tensors["head.weight"].float() * 0 + 1
        save_file(tensors, path, file.metadata())
    with pytest.raises(SystemExit) as ended:
        run(settings_for(path, dtype="float16"), WorkerArgs(0, "cpu", house.path, house.memory))
    assert ended.value.code == LOAD_FAILED
    assert "its scores for a black image are not finite numbers in float16" in caplog.text


@pytest.mark.parametrize(
    ("device", "settings", "words"),
    [
        ("cpu", {"stages": (5,)}, "block 5, but the model has 4 blocks"),
        ("cpu", {"patch_stride": 17}, "a patch stride of 17 is out of range"),
        ("cpu", {"labels": b"one\ntwo\n"}, "2 labels, but tiny has 3 classes"),
        ("cpu", {"labels": b"\xff\xfe\xfa"}, "can't decode byte"),
        ("cpu", {"labels": None}, "the label file"),
        (
            "cpu",
            {"model": "/nowhere/model.safetensors"},
            "the file '/nowhere/model.safetensors' does not exist",
        ),
        ("cuda:99", {}, "the device cuda:99 does not exist"),
    ],
    ids=str,
)
def test_what_cannot_be_served_as_configured_is_told_and_not_tried_again(
    house: House,
    checkpoint: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    device: str,
    settings: dict[str, Any],
    words: str,
) -> None:
    """The process ends with the exit code that keeps the supervisor from starting it again, and one line
    in the log."""
    if "labels" in settings:
        labels = tmp_path / "labels.txt"
        if settings["labels"] is not None:
            labels.write_bytes(settings["labels"])
        settings = {"labels": labels}
    configured = settings_for(checkpoint, **settings) if "model" not in settings else Settings(**settings)
    with pytest.raises(SystemExit) as ended:
        run(configured, WorkerArgs(0, device, house.path, house.memory))
    assert ended.value.code == LOAD_FAILED
    (record,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert words in record.getMessage()
    assert record.exc_info is None
