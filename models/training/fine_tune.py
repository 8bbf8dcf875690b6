"""`trimvit train`: fine-tune with pruning, at a fixed keep ratio or at one drawn per step.

All randomness of a step depends only on (seed, step), so a run that was interrupted and resumed has the same
result as an uninterrupted one.
"""

import random
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from timm.optim import list_optimizers
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from models.device import choose_device
from models.families import Network
from models.files import write_whole
from models.load import load, save
from models.normalise import normalise
from models.pruned_vit import PrunedViT
from models.schedule import Pruning
from models.training.cached_views import CachedBatch, CachedViews
from models.training.config import TrainConfig
from models.training.data import AugmentedPhotographs, Batch, StepBatches
from models.training.labelled import training_images
from models.training.loading import Batches, BrokenImages, refuse_a_lost_class
from models.training.mixing import Mixing
from models.training.objective import Inputs, loss_of
from models.training.optimizing import optimizer_of, schedule_of
from models.training.processes import Processes, joined, of_environment
from models.training.recording import Recorder
from models.training.resuming import BEST, CHECKPOINT, Run, State, refuse_divergence
from models.training.run_identity import card_of, fingerprint
from models.training.student import student_of
from models.training.teacher import Teacher
from models.training.validation import Validation


@dataclass(frozen=True)
class TrainReport:
    """The result of a training. ``steps`` and ``seconds``: the work of this call only. ``best``: the step of
    the saved model, if there was a validation. ``leads``: whether this process wrote the checkpoint."""

    checkpoint: Path
    steps: int
    seconds: float
    best: int | None = None
    leads: bool = True


def fine_tune(config: TrainConfig) -> TrainReport:
    """Train from the start, or resume from the state in the output folder.

    Raises ResumeError if that state is from other settings or images, ModelError if weights do not fit,
    FolderError or ClassesError if the folder does not contain suitable classes, OSError if the device does
    not exist, ValueError for settings that contradict each other, DivergedError, OutputError and
    BrokenImageError.
    """
    processes = of_environment()
    device = choose_device(processes.device(config.device) if config.device != "auto" else "auto")
    device = processes.device(device)
    with joined(processes, device):
        return _Training(config, processes, device).run()


class _Training:
    """One process of a training run."""

    def __init__(self, config: TrainConfig, processes: Processes, device: str) -> None:
        self.config, self.processes, self.device = config, processes, device
        if config.optimizer not in list_optimizers():
            raise ValueError(
                f"--optimizer {config.optimizer!r} is not an optimizer of timm; the usual one is adamw"
            )
        teacher = None
        if config.teacher is not None:
            teacher = load(str(config.teacher), architecture=config.architecture)
        self.classes, self.samples, self.labels = training_images(config, teacher)
        self.folder = Run(config.output, fingerprint(config, self.classes, self.labels, self.samples))
        if processes.leads:
            self.folder.prepare(config.data)
        processes.wait()
        self.broken = BrokenImages(config.broken_images)
        start, self.model = student_of(
            config, len(self.classes), self.samples, self.broken, device, resumes=self.folder.resumes
        )
        vit = self.model.vit
        self.card = card_of(config, self.model, self.classes, self.labels, start)
        self.spec = start.input
        self.mixing = Mixing(config, len(self.classes), device)
        self.validation = None
        if config.validation_data is not None:
            self.validation = Validation(config.validation_data, self.card, config)
        self.dataset = AugmentedPhotographs(
            self.samples, config.image_size, config.min_crop, config.seed, config.auto_augment
        )
        batches = self._keys(first_step=0)
        self.steps, self.steps_per_epoch = batches.steps, batches.steps_per_epoch
        share = config.batch_size // processes.count
        if share % config.accumulate or (share % 2 and (config.mixup or config.cutmix)):
            raise ValueError(
                f"a process's share of a batch, {share} images, must be a multiple of --accumulate "
                f"({config.accumulate}) and, with --mixup or --cutmix, even; choose another --batch-size"
            )
        ema = None
        if config.ema_decay is not None:
            ema = ModelEmaV3(vit, decay=config.ema_decay, use_warmup=True)
        self.state = State(vit, optimizer_of(config, vit), ema)
        self.schedule = schedule_of(config, self.state.optimizer, self.steps)
        self.folder.resume(self.state, self.broken)
        # After the resume state: whether the teacher shares the first blocks depends on their weights.
        self.teacher = None
        if teacher is not None:
            self.teacher = Teacher.of(teacher, self.model, self.spec, device)
        self.views = None
        if config.cached_views:
            self.views = CachedViews(
                config, self.model, self.teacher, self.dataset, self.folder.fingerprint, processes
            )

    def run(self) -> TrainReport:
        """Run the remaining steps and write the checkpoint."""
        config, state = self.config, self.state
        first_step, started = state.step, time.monotonic()
        forward = self._forward()
        if self.views is not None and first_step < self.steps:
            self.views.complete(self._inputs, self.broken)
        loader = self._loader(first_step)
        progress: tqdm[Batch | CachedBatch] = tqdm(
            loader,
            initial=first_step,
            total=self.steps,
            unit="step",
            dynamic_ncols=True,
            disable=None if self.processes.leads else True,
        )
        with Recorder(config, first_step, write=self.processes.leads) as recorder:
            for step, batch in enumerate(progress, start=first_step):
                self._step(forward, step, batch, recorder)
                state.step = step + 1
                if recorder.last:
                    progress.set_postfix(
                        loss=f"{recorder.last['loss']:.3f}", top1=f"{recorder.last['top1']:.2f}"
                    )
                if self.validation is not None and state.step % self.steps_per_epoch == 0:
                    self._validate(self.validation, recorder)
                    self._save_state(recorder)
                elif state.step % config.save_every == 0 or state.step == self.steps:
                    self._save_state(recorder)
        if self.processes.leads:
            self.broken.tell(of=len(self.dataset))
            self._save_checkpoint()
        if self.views is not None:
            self.views.remove()
        self.processes.wait()
        return TrainReport(
            config.output / CHECKPOINT,
            self.steps - first_step,
            time.monotonic() - started,
            None if state.best is None else state.best[0],
            self.processes.leads,
        )

    def _keys(self, first_step: int) -> StepBatches:
        config, processes = self.config, self.processes
        return StepBatches(
            len(self.dataset),
            config.batch_size,
            config.epochs,
            config.seed,
            first_step,
            processes.rank,
            processes.count,
        )

    def _loader(self, first_step: int) -> Iterable[Batch | CachedBatch]:
        keys = self._keys(first_step)
        if self.views is not None:
            return self.views.batches(keys)
        return Batches(self.dataset, self.broken, self.config.workers, batch_sampler=keys)

    def _inputs(self, pixels: UInt8[np.ndarray, "B height width 3"]) -> Float[Tensor, "B C height width"]:
        return normalise(torch.from_numpy(pixels).to(self.device), self.spec, torch.float32)

    def _forward(self) -> nn.Module:
        """Return the model, wrapped for distributed training if there are several processes."""
        if self.processes.count == 1:
            return self.model
        on = [torch.device(self.device)] if self.device.startswith("cuda") else None
        return DistributedDataParallel(
            self.model,
            device_ids=on,
            broadcast_buffers=False,
            # The predictor and the queries are unused in steps with other criteria or reducers, and in steps
            # without pruning.
            find_unused_parameters=self.config.life or "pool" in self.config.reducers,
        )

    def _mixed(self, batch: Batch | CachedBatch, seed: int) -> tuple[Inputs, Float[Tensor, "B classes"]]:
        """Return what the network computes from, and the target distribution over classes."""
        truth = torch.from_numpy(batch.truth).to(self.device)
        if isinstance(batch, CachedBatch):
            return batch.begun, self.mixing.targets(truth)
        refuse_a_lost_class(batch, self.config.batch_size // self.processes.count)
        return self.mixing(self._inputs(batch.pixels), truth, seed)

    def _step(self, forward: nn.Module, step: int, batch: Batch | CachedBatch, recorder: Recorder) -> None:
        config, state = self.config, self.state
        self.schedule.step_update(step)
        seed = hash((config.seed, step, self.processes.rank) if self.processes.rank else (config.seed, step))
        torch.manual_seed(seed)
        pruning = _draw(config, step)
        inputs, wanted = self._mixed(batch, seed)
        state.optimizer.zero_grad()
        losses, correct = [], []
        parts_of_inputs: Sequence[Inputs] = inputs.chunk(config.accumulate)
        parts = list(zip(parts_of_inputs, wanted.chunk(config.accumulate), strict=True))
        for number, (some_inputs, some_wanted) in enumerate(parts, start=1):
            exchange: AbstractContextManager[None] = nullcontext()
            if isinstance(forward, DistributedDataParallel) and number < len(parts):
                exchange = forward.no_sync()  # gradients are synchronized with the last part
            with exchange:
                with torch.autocast(
                    torch.device(self.device).type, dtype=torch.bfloat16, enabled=config.bf16
                ):
                    loss, right = loss_of(
                        forward,
                        self.teacher,
                        some_inputs,
                        some_wanted,
                        [pruning] * len(some_inputs),
                        config.distillation,
                    )
                (loss / len(parts)).backward()
            losses.append(loss.detach())
            correct.append(right)
        torch.nn.utils.clip_grad_norm_(state.vit.parameters(), 1.0)
        state.optimizer.step()
        if state.ema is not None:
            state.ema.update(state.vit, step)
        figures = {"step": step, "keep_ratio": round(pruning.keep_ratio, 4)}
        recorder.step(figures, torch.stack(losses).mean(), torch.cat(correct).float().mean())

    def _weights(self) -> Network:
        """Return the network that is validated and saved: the moving average if there is one."""
        return self.state.vit if self.state.ema is None else self.state.ema.module

    def _validate(self, validation: Validation, recorder: Recorder) -> None:
        """Validate after an epoch, in the leading process. The best model so far is kept in a separate
        file."""
        state = self.state
        refuse_divergence(state)
        if self.processes.leads:
            weights = self._weights()
            model = self.model if weights is state.vit else PrunedViT(weights, self.model.stages)
            top1 = validation.top1(model)
            mean = sum(top1.values()) / len(top1)
            best = state.best is None or mean > state.best[1]
            if best:
                state.best = (state.step, mean)
                save(self.config.output / BEST, weights, self.card)
            epoch = state.step // self.steps_per_epoch
            recorder.validation(state.step - 1, epoch, top1, best=best)
        self.processes.wait()

    def _save_state(self, recorder: Recorder) -> None:
        recorder.flush()
        refuse_divergence(self.state)
        broken = self.processes.gathered(self.broken.found)
        self.broken.found_before(broken)
        if self.processes.leads:
            self.folder.save(self.state, broken)

    def _save_checkpoint(self) -> None:
        output = self.config.output
        if self.state.best is None:
            save(output / CHECKPOINT, self._weights(), self.card)
        else:
            content = (output / BEST).read_bytes()
            write_whole(output / CHECKPOINT, lambda file: file.write(content))


def _draw(config: TrainConfig, step: int) -> Pruning:
    draw = random.Random(hash((config.seed, step)))
    ratio = draw.uniform(config.min_keep_ratio, config.max_keep_ratio)
    criterion = draw.choice(config.criteria)
    # The reducer is drawn last, so that the other draws do not depend on the choice of reducers.
    return Pruning(ratio, criterion, draw.choice(config.reducers), seed=step)
