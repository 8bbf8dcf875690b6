"""The settings of a training run -> timm's optimizer and its schedule of the learning rate."""

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from models.families import Network
from models.training.config import TrainConfig


def optimizer_of(config: TrainConfig, vit: Network) -> torch.optim.Optimizer:
    """timm's of that name."""
    return create_optimizer_v2(
        vit,
        opt=config.optimizer,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
    )


def schedule_of(config: TrainConfig, optimizer: torch.optim.Optimizer, steps: int) -> Scheduler:
    """timm's schedule of the learning rate over so many steps, with a warm-up, between the rate that is set
    and a hundredth of it."""
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=config.schedule,
        num_epochs=steps,  # steps are what is counted here
        updates_per_epoch=1,
        step_on_epochs=False,
        min_lr=config.learning_rate / 100,
        warmup_epochs=round(steps * config.warmup_share),
        warmup_lr=config.learning_rate / 100,
        warmup_prefix=True,
    )
    return schedule
