"""`trimvit` with workers that compute nothing: they return the same labels for every image immediately.

    python -m benchmarks.instant serve [flags of trimvit serve]

The cost of an image in such a server is the cost of the host: HTTP, decoding, queueing and messages between
processes. All other processes are the same as in `trimvit serve`, and a worker runs the real main loop.
"""

import os
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from app import cli
from app.messages.capacity import Limits, Measured, Work
from app.messages.image import Prediction
from app.messages.model import ModelInfo
from app.processes import programs
from app.settings.settings import Settings
from app.worker import process
from app.worker.backend import Job, Loaded
from app.worker.process import WorkerArgs, make_loop
from app.worker.streams import OnAll
from models.schedule import Architecture, Method, Pruning, compute, default_stages
from models.transforms import InputSpec

# A ViT-S/14 with the classes of ImageNet.
MODEL = ModelInfo(
    name="instant",
    labels=tuple(f"label {index}" for index in range(1000)),
    input=InputSpec((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    architecture=Architecture(
        depth=12, dim=384, mlp_dim=1536, grid=(16, 16), prefix_tokens=1, patch_inputs=588, classes=1000
    ),
    method=Method(default_stages(12)),
    cascade=None,
    patch_size=(14, 14),
    patch_stride=(14, 14),
    device="cpu:0",
    dtype="float32",
    features=384,
)
_FEATURES = np.random.default_rng(0).standard_normal(MODEL.features).astype("<f4").tobytes()
IMAGE_S = 10e-6  # reported computing time per image


class InstantBackend:
    """Backend that returns the first classes for every image, and constant features if requested."""

    limits = Limits(batch_tokens=65_536, threads=1, streams=1)

    def load(self, on_all: OnAll) -> Loaded:  # noqa: ARG002
        """Return the description of the model without loading anything."""
        measured = [Measured(1, Work(images, images), images * IMAGE_S) for images in (1, 2, 8)]
        return Loaded(MODEL, self.limits, tuple(measured))

    def classify(self, jobs: Sequence[Job], threads: int) -> Sequence[Prediction]:  # noqa: ARG002
        """Return predictions that depend only on the request."""
        return [_prediction(job.ask.pruning, job.ask.top_k, job.ask.features) for job in jobs]

    def memory_bytes(self) -> int:
        """Return 0, because the memory used is negligible."""
        return 0


@lru_cache
def _prediction(pruning: Pruning, top_k: int, features: bool) -> Prediction:
    arch, stages = MODEL.architecture, MODEL.method.stages
    return Prediction(
        classes=list(range(top_k)),
        scores=[2.0**-index for index in range(1, top_k + 1)],
        kept_counts=stages.keep_counts(arch.patches, pruning.keep_ratio),
        keep_ratio=pruning.keep_ratio,
        compute=compute(arch, stages, pruning.keep_ratio, pruning.reducer),
        runs=1,
        features=_FEATURES if features else None,
    )


def compute_nothing(settings: Settings, args: WorkerArgs) -> None:
    """Run a worker with the instant backend, instead of app.worker.process.run."""
    make_loop(settings, args, [InstantBackend()], f"cpu:{args.index}").run()


if __name__ == "__main__":
    if "TRIMVIT_WORKER_INDEX" in os.environ:
        process.main(compute_nothing)
    else:
        programs.WORKER, programs.PRELOADED = "benchmarks.instant", ()
        cli.main()
