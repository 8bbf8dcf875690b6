"""Log a run: one line per step and per validation, optionally also to TensorBoard and Weights & Biases."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor

from models.files import write_whole
from models.training.config import TrainConfig
from models.training.packages import MissingPackageError

LOG = "log.jsonl"
VALIDATION_LOG = "validation.jsonl"
# Reading a value waits for the device, so the values of several steps are read together.
_STEPS_TOGETHER = 10


class Tracker(Protocol):
    """A service that plots metrics."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Log the metrics of a step."""

    def close(self) -> None:
        """Write pending metrics and close."""


class _TensorBoard:
    def __init__(self, config: TrainConfig) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError(
                "--track tensorboard needs tensorboard: pip install tensorboard"
            ) from error
        self._writer = SummaryWriter(str(config.output / "tensorboard"))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, config: TrainConfig) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingPackageError("--track wandb needs wandb: pip install wandb") from error
        self._run = wandb.init(
            project="trimvit", dir=str(config.output), config=config.model_dump(mode="json"), resume="allow"
        )

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


_TRACKERS: dict[str, Callable[[TrainConfig], Tracker]] = {"tensorboard": _TensorBoard, "wandb": _WandB}


class Recorder:
    """Writes the logs in an output folder, continuing at ``first_step``. Existing lines for this and later
    steps are removed, because these steps run again. ``write``: whether this process writes at all."""

    def __init__(self, config: TrainConfig, first_step: int, *, write: bool) -> None:
        self._waiting: list[tuple[dict[str, Any], Tensor, Tensor]] = []
        self._folder = config.output if write else None
        self._trackers: list[Tracker] = []
        self.last: dict[str, Any] = {}
        if not write:
            return
        for name in (LOG, VALIDATION_LOG):
            _keep(config.output / name, first_step)
        self._trackers = [_TRACKERS[name](config) for name in config.track]

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.flush()
        for tracker in self._trackers:
            tracker.close()

    def step(self, figures: Mapping[str, Any], loss: Tensor, top1: Tensor) -> None:
        """Record the metrics of a step. Tensors are read later, in `flush`."""
        self._waiting.append((dict(figures), loss, top1))
        if len(self._waiting) >= _STEPS_TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Read and write the pending metrics."""
        waiting, self._waiting = self._waiting, []
        if self._folder is None or not waiting:
            return
        lines = [{**figures, "loss": loss.item(), "top1": top1.item()} for figures, loss, top1 in waiting]
        _append(self._folder / LOG, lines)
        for line in lines:
            for tracker in self._trackers:
                tracker.log(
                    {f"train/{name}": line[name] for name in ("loss", "top1", "keep_ratio")}, line["step"]
                )
        self.last = lines[-1]

    def validation(self, step: int, epoch: int, top1: Mapping[float, float], *, best: bool) -> None:
        """Record the result of a validation after ``step``: top-1 by keep ratio."""
        self.flush()
        if self._folder is None:
            return
        shares = {f"{ratio:g}": round(share, 6) for ratio, share in top1.items()}
        line = {"step": step, "epoch": epoch, "top1": shares, "best": best}
        _append(self._folder / VALIDATION_LOG, [line])
        for tracker in self._trackers:
            tracker.log({f"validation/top1 at {ratio}": share for ratio, share in shares.items()}, step)


def _append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as log:
        log.writelines(json.dumps(line) + "\n" for line in lines)


def _keep(path: Path, before_step: int) -> None:
    """Keep only the lines of earlier steps. A truncated last line is also removed."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n") or json.loads(line)["step"] >= before_step:
            break
        kept.append(line)
    write_whole(path, lambda file: file.write(b"".join(kept)))
