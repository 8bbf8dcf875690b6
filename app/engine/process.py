"""The engine process: `python -m app.engine.process`, started by the supervisor.

torch and the network are imported inside `run` only.
"""

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from setproctitle import setproctitle

from app.engine.agreement import Agreement
from app.engine.cost import CostModel
from app.engine.learned import Learned, recall, remember
from app.engine.loop import Engine, Job, Loaded, Result
from app.engine.messages import MOST_PATCHES
from app.engine.scheduler import Limits
from app.engine.warm_up import time_batches
from app.processes.heap import give_back_freed_memory
from app.processes.heartbeat import Heartbeat
from app.processes.lifeline import LOAD_FAILED, die_with_parent
from app.processes.reports import tell_reason
from app.settings.combinations import without_effect
from app.settings.settings import Settings
from app.telemetry.logs import configure_logging

log = logging.getLogger(__name__)

# On a machine of many cores each stream gets several: one image on one core of 96 would take its time.
MOST_STREAMS = 8
_KERNELS_S = 4.0  # in which kernels are made ahead at most


@dataclass(frozen=True, slots=True)
class EngineArgs:
    """What the supervisor tells an engine beside the settings. ``sharing``: engines on the same device;
    ``heartbeat``: file for its beats; ``learned``: file for what it leaves to its successor."""

    index: int
    device: str
    address: str
    sharing: int = 1
    heartbeat: Path | None = None
    learned: Path | None = None


def run(settings: Settings, args: EngineArgs) -> None:
    """Load the model and serve it at the address until SIGTERM."""
    import torch

    from app.engine.loading import describe, load_model
    from models.classifier import Classifier, ImageRequest
    from models.device import choose_device, choose_dtype, cores
    from models.kernels import make_kernels
    from models.load import ModelError
    from models.pruned_vit import UnsupportedModelError, check_against_timm
    from models.schedule import REDUCERS, UNPRUNED, Pruning

    try:
        device = choose_device(args.device)
        dtype = choose_dtype(device, settings.dtype)
    except (OSError, ValueError) as error:
        log.error("%s", error)
        sys.exit(LOAD_FAILED)
    on_cpu = device == "cpu"
    if settings.device == "auto":  # of a device that is named, the server's start has told
        for remark in without_effect(settings, on_cpu=on_cpu):
            log.warning("%s", remark)
    threads = min(settings.threads or max(1, cores() // args.sharing), cores())
    # A GPU computes one batch while the next is prepared and copied; more would only queue up on it.
    streams = min(settings.streams or MOST_STREAMS, threads) if on_cpu else settings.streams or 2
    limits = Limits(
        batch_tokens=settings.max_batch_tokens or (4096 if on_cpu else 65536),
        queue_images=settings.max_queue_images,
        threads=threads if on_cpu else streams,
        streams=streams,
        queue_s=settings.max_queue_s,
    )
    name = f"{device}:{args.index}" if on_cpu else device
    setproctitle(f"trimvit: engine {name}")

    class TorchBackend:
        """The pruned ViT on its device."""

        classifier: Classifier

        def __init__(self) -> None:
            self._of_thread = threading.local()
            self._learned: Learned | None = None

        def load(self) -> Loaded:
            torch.set_num_threads(threads)
            try:
                loaded = load_model(settings)
            except ValueError as error:  # labels or stages that do not fit, too: starting again will not help
                raise ModelError(str(error)) from error
            patches = loaded.model.arch.patches
            if patches > MOST_PATCHES:
                raise ModelError(
                    f"it has {patches} patches, and at most {MOST_PATCHES} can be numbered; "
                    "choose a larger patch stride or a smaller input"
                )
            info = describe(loaded, name, dtype)
            learned = None if args.learned is None else recall(args.learned, info, limits)
            if learned is None:
                height, width = loaded.input.size
                channels = loaded.input.channels
                check_against_timm(loaded.model, torch.rand(1, channels, height, width))
            graphs = not on_cpu and settings.cuda_graphs == "auto"
            self.classifier = Classifier(loaded.model, loaded.input, device, dtype, graphs=graphs)
            if learned is None:
                # Before the first stage a pruned batch has up to twice its mean tokens, which are limited.
                make_kernels(self.classifier.model, 2 * limits.batch_tokens, _KERNELS_S)
                self._warm_up()
                measured = time_batches(self._classify_blank, info.architecture, info.method.stages, limits)
                learned = Learned(info, limits, measured)
            else:
                self._classify_blank([UNPRUNED, Pruning(0.5)], threads)
            self._learned = learned
            gc.freeze()  # what is there now stays: no looking for garbage in it while batches wait
            return Loaded(info, limits, CostModel.learned(learned.measured))

        def _warm_up(self) -> None:
            for prunings in (
                [UNPRUNED],
                [Pruning(0.5)],
                [Pruning(ratio) for ratio in (0.9, 0.7, 0.5, 0.3)],
                [*(Pruning(0.5, reducer=reducer) for reducer in REDUCERS), Pruning(keep_mass=0.8)],
            ):
                self._classify_blank(prunings, threads)

        def _classify_blank(self, prunings: Sequence[Pruning], threads: int) -> None:
            torch.set_num_threads(threads)
            height, width = self.classifier.spec.size
            with self._stream():
                pixels = torch.zeros((len(prunings), height, width, 3), dtype=torch.uint8)
                found = self.classifier.classify(pixels, [ImageRequest(pruning) for pruning in prunings])
            if not all(np.isfinite(prediction.scores).all() for prediction in found):
                served = str(dtype).removeprefix("torch.")
                raise ModelError(
                    f"its scores for a black image are not finite numbers in {served}; a wider dtype may help"
                )

        def _stream(self) -> AbstractContextManager[object]:
            """On a GPU each thread computes on a stream of its own: one copies while the other computes, and
            neither waits for the other's results."""
            if on_cpu:
                return nullcontext()
            if not hasattr(self._of_thread, "stream"):
                self._of_thread.stream = torch.cuda.Stream(device)
            return torch.cuda.stream(self._of_thread.stream)

        def classify(self, jobs: Sequence[Job], threads: int) -> Sequence[Result]:
            # The number is kept per calling thread by OpenMP: each stream sets its own.
            torch.set_num_threads(threads)
            height, width = self.classifier.spec.size
            images = [np.frombuffer(job.pixels, np.uint8).reshape(height, width, 3) for job in jobs]
            requests = [
                ImageRequest(asked.pruning, asked.top_k, asked.kept_patches, asked.margin, asked.logits)
                for asked in (job.submit for job in jobs)
            ]
            with self._stream():
                # Only from pinned memory is a copy to a GPU made while the thread goes on.
                pixels = torch.empty((len(jobs), height, width, 3), dtype=torch.uint8, pin_memory=not on_cpu)
                np.stack(images, out=pixels.numpy())
                predictions = self.classifier.classify(pixels, requests)
            self._hand_on()
            return [
                Result(
                    classes=prediction.classes.tolist(),
                    scores=prediction.scores.tolist(),
                    kept_counts=prediction.kept_counts,
                    kept=tuple(stage.astype("<u2").tobytes() for stage in prediction.kept or ()),
                    keep_ratio=prediction.keep_ratio,
                    compute=prediction.compute,
                    runs=prediction.runs,
                    logits=None if prediction.logits is None else prediction.logits.astype("<f4").tobytes(),
                )
                for prediction in predictions
            ]

        def _hand_on(self) -> None:
            """Only an engine that has computed something leaves what it learned: one that dies of that, as
            soon as images come, shall have a successor that finds out for itself."""
            learned, self._learned = self._learned, None
            if learned is not None and args.learned is not None:
                remember(args.learned, learned)

        def memory_bytes(self) -> int:
            if on_cpu:
                return _resident_bytes()
            return torch.cuda.memory_allocated(device)

    agreement = Agreement(settings.agreement_share)
    heartbeat = None if args.heartbeat is None else Heartbeat(args.heartbeat)
    engine = Engine(
        f"engine-{args.index}", args.address, TorchBackend(), agreement, heartbeat, settings.hang_after_s
    )
    signal.signal(signal.SIGTERM, lambda *_: engine.stop())
    try:
        engine.run()
    except (ModelError, UnsupportedModelError, OSError) as error:
        if engine.loaded:  # it served: another start may help
            raise
        log.error("cannot load the model %s: %s", settings.model, error)
        if (reason := os.environ.get("TRIMVIT_ENGINE_REASON")) is not None:
            tell_reason(Path(reason), error)
        sys.exit(LOAD_FAILED)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Read what the supervisor passed in the environment, and run."""
    settings = Settings.model_validate_json(os.environ["TRIMVIT_SETTINGS"])
    args = EngineArgs(
        int(os.environ["TRIMVIT_ENGINE_INDEX"]),
        os.environ["TRIMVIT_ENGINE_DEVICE"],
        os.environ["TRIMVIT_ENGINE_ADDRESS"],
        int(os.environ["TRIMVIT_ENGINE_SHARING"]),
        Path(os.environ["TRIMVIT_ENGINE_HEARTBEAT"]),
        Path(os.environ["TRIMVIT_ENGINE_LEARNED"]),
    )
    die_with_parent()
    configure_logging(settings.log_level, f"engine {args.index}", settings.log_format)
    give_back_freed_memory()
    try:
        run(settings, args)
    except Exception as error:
        tell_reason(Path(os.environ["TRIMVIT_ENGINE_REASON"]), error)
        raise


if __name__ == "__main__":
    main()
