"""`trimvit train`: fine-tune with pruning, at one ratio or at ratios drawn per step.

All randomness of a step follows from (seed, step), so a run that was interrupted and resumed is the run
that was not.
"""

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor
from tqdm import tqdm

from models.classifier import normalise
from models.load import HEADS, Card, ModelError, create, input_spec_of, load, read_card, save
from models.names import shown
from models.pruned_vit import PrunedViT
from models.schedule import UNPRUNED, Pruning
from models.training.config import TrainConfig
from models.training.data import AugmentedPhotographs, Batch, Sample, StepBatches
from models.training.folders import class_folders
from models.training.labelled import label_names, tell, training_order
from models.training.loading import Batches, BrokenImageError, BrokenImages
from models.training.resuming import CHECKPOINT, Run, digest_of_names


@dataclass(frozen=True)
class TrainReport:
    """Where the checkpoint is, and how long this call trained."""

    checkpoint: Path
    steps: int
    seconds: float


def fine_tune(config: TrainConfig, device: str = "cpu") -> TrainReport:
    """Train from the start or from the output folder's resume state.

    Raises ResumeError where that state is of other settings or images, ModelError for weights that do not
    fit, FolderError and ClassesError for a folder that is none of classes, OutputError, and BrokenImageError.
    """
    classes, samples, labels = _training_images(config)
    run = Run(config.output, _fingerprint(config, classes, labels, samples))
    run.prepare(config.data)
    broken = BrokenImages(config.broken_images)
    torch.manual_seed(config.seed)  # of the new head
    start = create(
        config.architecture,
        config.weights,
        patch_stride=config.patch_stride,
        num_classes=len(classes),
        img_size=config.image_size,
        drop_path_rate=config.drop_path,
    )
    vit = start.vit.to(device)
    for name, parameter in vit.named_parameters():
        parameter.requires_grad_(config.trained == "all" or name.startswith(HEADS))
    model = PrunedViT(vit).train()
    spec = input_spec_of(vit)
    dataset = AugmentedPhotographs(samples, config.image_size, config.min_crop, config.seed)
    steps = StepBatches(len(dataset), config.batch_size, config.epochs, config.seed, first_step=0).steps
    optimizer = create_optimizer_v2(
        vit,
        opt="adamw",
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
    )
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=steps,
        lr_min=config.learning_rate / 100,
        warmup_t=round(steps * config.warmup_share),
        warmup_lr_init=config.learning_rate / 100,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    teacher = _load_teacher(config, model, device)
    first_step = run.resume(vit, optimizer, broken)
    keys = StepBatches(len(dataset), config.batch_size, config.epochs, config.seed, first_step)
    loader = Batches(dataset, broken, config.workers, batch_sampler=keys)

    started = time.monotonic()
    progress = tqdm(loader, initial=first_step, total=steps, unit="step", dynamic_ncols=True)
    with run.log_up_to(first_step).open("a", encoding="utf-8") as log:
        for step, batch in enumerate(progress, start=first_step):
            _refuse_a_lost_class(batch, config.batch_size)
            schedule.step_update(step)
            torch.manual_seed(hash((config.seed, step)))
            pruning = _draw(config, step)
            with torch.autocast(device, dtype=torch.bfloat16, enabled=config.bf16):
                inputs = normalise(torch.from_numpy(batch.pixels).to(device), spec, torch.float32)
                truth = torch.from_numpy(batch.truth).to(device)
                loss, correct = _loss(model, teacher, inputs, truth, pruning, config)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vit.parameters(), 1.0)
            optimizer.step()
            figures = {
                "step": step,
                "keep_ratio": round(pruning.keep_ratio, 4),
                "loss": loss.item(),
                "top1": correct,
            }
            log.write(json.dumps(figures) + "\n")
            log.flush()
            progress.set_postfix(loss=f"{figures['loss']:.3f}", top1=f"{correct:.2f}")
            if (step + 1) % config.save_every == 0 or step + 1 == steps:
                run.save(vit, optimizer, broken, step + 1)
    broken.tell(of=len(dataset))
    checkpoint = config.output / CHECKPOINT
    save(checkpoint, vit, _card(config, model, classes, labels, start.model_args))
    return TrainReport(checkpoint, steps - first_step, time.monotonic() - started)


def _draw(config: TrainConfig, step: int) -> Pruning:
    draw = random.Random(hash((config.seed, step)))
    ratio = draw.uniform(config.min_keep_ratio, config.max_keep_ratio)
    criterion = draw.choice(config.criteria)
    # Drawn last, so that runs which only drop draw what they always drew.
    return Pruning(ratio, criterion, draw.choice(config.reducers), seed=step)


def _loss(
    model: PrunedViT,
    teacher: PrunedViT | None,
    inputs: Tensor,
    labels: Tensor,
    pruning: Pruning,
    config: TrainConfig,
) -> tuple[Tensor, float]:
    """Loss and top-1 of the pruned network on one batch.

    With a teacher, and w its weight: (1 - w) CE(label) + w (KL(teacher || student) + 1 - cos(features)). The
    logits of a few classes say little about an image; the teacher's features, which the head reads, say
    what the pruned network should still have seen.
    """
    images = len(inputs)
    with _features(model) as features:
        logits = model(inputs, [pruning] * images).logits.float()
    correct = (logits.argmax(1) == labels).float().mean().item()
    loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    if teacher is None:
        return loss, correct
    with torch.no_grad(), _features(teacher) as wanted_features:
        wanted = teacher(inputs, [UNPRUNED] * images).logits.float()
    divergence = F.kl_div(
        logits.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True
    )
    distance = 1 - F.cosine_similarity(features[0].float(), wanted_features[0].float()).mean()
    weight = config.distillation
    return (1 - weight) * loss + weight * (divergence + distance), correct


@contextmanager
def _features(model: PrunedViT) -> Iterator[list[Tensor]]:
    """While inside, collects what the classification head reads: [B, D] per forward pass."""
    collected: list[Tensor] = []
    hook = model.vit.head.register_forward_pre_hook(lambda _, inputs: collected.append(inputs[0]))
    try:
        yield collected
    finally:
        hook.remove()


def _load_teacher(config: TrainConfig, model: PrunedViT, device: str) -> PrunedViT | None:
    """Raises ModelError where the teacher's architecture, input or classes are others than the student's.

    Its patches may be other ones: features that the head reads are compared, not patches.
    """
    if config.teacher is None:
        return None
    teacher = load(str(config.teacher), architecture=config.architecture).model
    sizes = [some.vit.patch_embed.img_size for some in (teacher, model)]
    if replace(teacher.arch, grid=model.arch.grid) != model.arch or sizes[0] != sizes[1]:
        raise ModelError(
            f"the teacher is {teacher.arch} for {sizes[0]} pixels, "
            f"but the student is {model.arch} for {sizes[1]}"
        )
    return teacher.to(device).requires_grad_(requires_grad=False)


def _training_images(config: TrainConfig) -> tuple[tuple[str, ...], list[Sample], tuple[str, ...]]:
    """The class folders in the order in which they are learned, their images likewise, and their labels."""
    folders = class_folders(config.data)
    tell(*folders.remarks)
    names = label_names(config.labels, folders) if config.labels else {}
    start, teacher = (None if path is None else read_card(path) for path in (config.weights, config.teacher))
    classes = training_order(folders, names, start, teacher)
    samples = [(path, truth) for truth, name in enumerate(classes) for path in folders.images[name]]
    return classes, samples, tuple(names.get(name, name) for name in classes)


def _refuse_a_lost_class(batch: Batch, batch_size: int) -> None:
    """Another image of its class stands in for a broken one; a class without any is not passed over."""
    if len(batch.numbers) < batch_size:
        folder = batch.broken[-1].path.parent
        raise BrokenImageError(f"none of the images of {shown(folder)} can be read: {batch.broken[-1]}")


def _fingerprint(
    config: TrainConfig, classes: tuple[str, ...], labels: tuple[str, ...], samples: list[Sample]
) -> dict[str, object]:
    """What must not change between the parts of one run; where it runs and lies and how it reads may."""
    left_out = {"data", "labels", "workers", "broken_images", "save_every", "output"}
    return {
        **config.model_dump(mode="json", exclude=left_out),
        "classes": list(classes),
        "labels": list(labels),
        "images": digest_of_names((path for path, _ in samples), config.data),
    }


def _card(
    config: TrainConfig,
    model: PrunedViT,
    classes: tuple[str, ...],
    labels: tuple[str, ...],
    model_args: dict[str, Any],
) -> Card:
    left_out = {"data", "output", "weights", "labels", "teacher", "broken_images"}
    return Card(
        architecture=config.architecture,
        labels=labels,
        input=input_spec_of(model.vit),
        stages=model.stages,
        criterion=config.criteria[0],
        reducer=config.reducers[0],
        model_args={**model_args, "num_classes": len(classes), "img_size": config.image_size},
        patch_stride=config.patch_stride,
        origin=config.model_dump(mode="json", exclude=left_out),
        folders=classes,
    )
