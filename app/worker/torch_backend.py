"""The pruned ViT on its device. It imports torch: for the worker's process only."""

import gc
import os
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import torch

from app.messages.capacity import Limits
from app.messages.image import Ask, Prediction
from app.messages.model import MOST_PATCHES
from app.messages.pixels import copy_pixels
from app.settings.served_models import ServedModel
from app.settings.settings import Settings
from app.worker.backend import Job, Loaded
from app.worker.classifying import classify
from app.worker.learned import Learned, recall, remember
from app.worker.loading import check_defaults, describe, fingerprint, load_model
from app.worker.streams import OnAll
from app.worker.warm_up import TIMING_S, time_batches
from models.classifier import Classifier
from models.device import use_gpu
from models.load import ModelError
from models.pruned_vit import check_against_timm
from models.schedule import UNPRUNED, Criterion, Pruning


@dataclass
class TorchBackend:
    """One model on its device. ``name``: the device as front ends see it. ``threads``: those that loading may
    use. ``learned``: the file for its successor."""

    settings: Settings
    served: ServedModel
    name: str
    device: str
    dtype: torch.dtype
    limits: Limits
    threads: int
    learned: Path | None = None
    _classifier: Classifier = field(init=False)
    _of_thread: threading.local = field(default_factory=threading.local)
    _to_hand_on: Learned | None = None

    @property
    def _on_cpu(self) -> bool:
        return self.device == "cpu"

    def load(self, on_all: OnAll) -> Loaded:
        """Load the model. Raises ModelError if it cannot be served."""
        torch.set_num_threads(self.threads)
        if not self._on_cpu:
            use_gpu(self.device)
        try:
            loaded = load_model(self.settings, self.served.reference)
            if self.served.name is not None:
                loaded = replace(loaded, name=self.served.name)
            check_defaults(self.settings, loaded)
        except ValueError as error:  # also if labels or stages do not fit; a restart will not help
            raise ModelError(str(error)) from error
        patches = loaded.model.arch.patches
        if patches > MOST_PATCHES:
            raise ModelError(
                f"it has {patches} patches, but at most {MOST_PATCHES} are supported; use a larger patch "
                "stride or a smaller input"
            )
        info = describe(loaded, self.name, self.dtype)
        if self.settings.answer_cache_bytes:
            info = msgspec.structs.replace(info, fingerprint=fingerprint(loaded.model.vit))
        learned = None if self.learned is None else recall(self.learned, info, self.limits)
        if learned is None:
            height, width = loaded.input.size
            check_against_timm(loaded.model, torch.rand(1, loaded.input.channels, height, width))
        graphs = not self._on_cpu and self.settings.cuda_graphs == "auto"
        self._classifier = Classifier(
            loaded.model,
            loaded.input,
            self.device,
            self.dtype,
            graphs=graphs,
            exact=self.settings.exact,
            scores=loaded.scores,
        )
        if learned is None:
            timing_s = min(self.settings.warm_up_s, TIMING_S)
            # Before the first stage, a pruned batch has up to twice its mean tokens, which is what the limit
            # applies to.
            self._classifier.make_kernels(2 * self.limits.batch_tokens, self.settings.warm_up_s - timing_s)
            on_all(self._warm_up)
            on_all(lambda _: self._capture_graphs(info.method.criterion))
            method = self.settings.method_of(info.name, info.method)
            measured = time_batches(
                self._classify_noise, info.architecture, method, self.limits, on_all, timing_s
            )
            learned = Learned(info, self.limits, measured)
        else:
            on_all(self._warm_up)
            on_all(lambda _: self._capture_graphs(info.method.criterion))
        self._to_hand_on = learned
        gc.freeze()  # existing objects stay, so the garbage collector skips them while batches wait
        return Loaded(info, self.limits, learned.measured)

    def classify(self, jobs: Sequence[Job], threads: int) -> Sequence[Prediction]:
        """One result for each job, in order. The pixels are copied once, to where the device reads them."""
        # OpenMP stores the number of threads per calling thread, so each stream sets it.
        torch.set_num_threads(threads)
        with self._stream():
            pixels = self._room_for(len(jobs))
            rows = pixels.numpy().reshape(len(jobs), -1)
            for row, job in zip(rows, jobs, strict=True):
                copy_pixels(row, job.pixels)
            predictions = classify(self._classifier, pixels, [job.ask for job in jobs])
        self._hand_on()
        return predictions

    def memory_bytes(self) -> int:
        """The process's resident memory on a CPU, otherwise what PyTorch has allocated on the device."""
        if not self._on_cpu:
            return torch.cuda.memory_allocated(self.device)
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _room_for(self, images: int) -> torch.Tensor:
        """A buffer for the pixels. Only a copy from pinned memory to a GPU runs while the thread
        continues."""
        height, width = self._classifier.spec.size
        return torch.empty((images, height, width, 3), dtype=torch.uint8, pin_memory=not self._on_cpu)

    def _warm_up(self, _: int) -> None:
        """Compute every variant of the forward pass once, in this thread. Raises ModelError if scores are not
        finite."""
        model = self._classifier.model
        by_mass = [] if model.stages.evenly else [Pruning(keep_mass=0.8)]
        by_life = [Pruning(0.5, "life")] if "life" in model.criteria else []
        for prunings in (
            [UNPRUNED],
            [Pruning(0.5)],
            [Pruning(ratio) for ratio in (0.9, 0.7, 0.5, 0.3)],
            [*(Pruning(0.5, reducer=reducer) for reducer in model.reducers), *by_mass, *by_life],
        ):
            black = np.zeros(self._pixel_bytes, np.uint8)
            found = self._classify_all(black, prunings, self.limits.stream_threads)
            if not all(prediction.is_finite for prediction in found):
                served = str(self.dtype).removeprefix("torch.")
                raise ModelError(
                    f"its scores for a black image are not finite numbers in {served}; try a dtype with a "
                    "wider range"
                )

    def _capture_graphs(self, criterion: Criterion) -> None:
        with self._stream():
            self._classifier.capture_graphs(criterion)

    def _classify_noise(self, prunings: Sequence[Pruning], threads: int) -> None:
        """Classify noise, not images of one color, because some processors multiply zeros faster."""
        self._classify_all(self._noise, prunings, threads)

    def _classify_all(
        self, pixels: np.ndarray, prunings: Sequence[Pruning], threads: int
    ) -> Sequence[Prediction]:
        """Classify like a batch that is served."""
        asks = [Ask(pruning, top_k=1, features=not self._has_classes) for pruning in prunings]
        return self.classify([Job(ask, pixels) for ask in asks], threads)

    @property
    def _has_classes(self) -> bool:
        return self._classifier.model.vit.num_classes > 0

    @cached_property
    def _noise(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, self._pixel_bytes, np.uint8)

    @property
    def _pixel_bytes(self) -> int:
        height, width = self._classifier.spec.size
        return height * width * 3

    def _stream(self) -> AbstractContextManager[object]:
        """On a GPU, each thread computes on a stream of its own: one copies while the other computes, and
        neither waits for the other's results."""
        if self._on_cpu:
            return nullcontext()
        if not hasattr(self._of_thread, "stream"):
            use_gpu(self.device)
            self._of_thread.stream = torch.cuda.Stream(self.device)
        return torch.cuda.stream(self._of_thread.stream)

    def _hand_on(self) -> None:
        """Write the file for the successor after the first batch. If a worker dies from what it learned as
        soon as images arrive, its successor measures again."""
        learned, self._to_hand_on = self._to_hand_on, None
        if learned is not None and self.learned is not None:
            remember(self.learned, learned)
