"""`trimvit` with engines that compute nothing: every image gets the same labels at once.

    python -m benchmarks.instant serve [flags of trimvit serve]

What such a server needs for an image is the cost of the host: HTTP, decoding, queueing and the messages
between processes. All other processes are those of `trimvit serve`, and an engine runs the real main loop.
"""

import os
import signal
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from setproctitle import setproctitle

from app import cli
from app.engine.cost import CostModel, Measured, Work
from app.engine.loop import Engine, Job, Loaded, Result
from app.engine.messages import ModelInfo
from app.engine.scheduler import Limits
from app.processes import supervisor
from app.processes.heartbeat import Heartbeat
from app.processes.lifeline import die_with_parent
from app.settings.settings import Settings
from app.telemetry.logs import configure_logging
from models.schedule import Architecture, Method, Pruning, compute, default_stages, keep_counts
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
)
IMAGE_S = 10e-6  # that an image is said to take


class InstantBackend:
    """Gives every image its first classes."""

    def __init__(self, queue_images: int) -> None:
        self._limits = Limits(batch_tokens=65_536, queue_images=queue_images, threads=1, streams=1)

    def load(self) -> Loaded:
        """Nothing is loaded."""
        measured = [Measured(1, Work(images, images), images * IMAGE_S) for images in (1, 2, 8)]
        return Loaded(MODEL, self._limits, CostModel.learned(measured))

    def classify(self, jobs: Sequence[Job], threads: int) -> Sequence[Result]:  # noqa: ARG002
        """The same for all that ask for the same."""
        return [_result(job.submit.pruning, job.submit.top_k) for job in jobs]

    def memory_bytes(self) -> int:
        """None that matters."""
        return 0


@lru_cache
def _result(pruning: Pruning, top_k: int) -> Result:
    arch, stages = MODEL.architecture, MODEL.method.stages
    return Result(
        classes=list(range(top_k)),
        scores=[2.0**-index for index in range(1, top_k + 1)],
        kept_counts=keep_counts(arch.patches, pruning.keep_ratio, len(stages.blocks)),
        kept=(),
        keep_ratio=pruning.keep_ratio,
        compute=compute(arch, stages, pruning.keep_ratio, pruning.reducer),
        runs=1,
    )


def engine() -> None:
    """What the supervisor starts in the place of app.engine.process."""
    settings = Settings.model_validate_json(os.environ["TRIMVIT_SETTINGS"])
    index = os.environ["TRIMVIT_ENGINE_INDEX"]
    die_with_parent()
    configure_logging(settings.log_level, f"engine {index}", settings.log_format)
    setproctitle(f"trimvit: engine cpu:{index}")
    running = Engine(
        f"engine-{index}",
        os.environ["TRIMVIT_ENGINE_ADDRESS"],
        InstantBackend(settings.max_queue_images),
        heartbeat=Heartbeat(Path(os.environ["TRIMVIT_ENGINE_HEARTBEAT"])),
        hang_after_s=settings.hang_after_s,
    )
    signal.signal(signal.SIGTERM, lambda *_: running.stop())
    running.run()


if __name__ == "__main__":
    if "TRIMVIT_ENGINE_INDEX" in os.environ:
        engine()
    else:
        supervisor.ENGINE, supervisor.PRELOADED = "benchmarks.instant", ()
        cli.main()
