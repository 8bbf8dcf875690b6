"""Create timm's optimizer and learning rate schedule from the settings of a training run."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from models.families import Network
from models.load.errors import first_line
from models.static_attention import is_static_logits
from models.training.config import TrainConfig

# These need second derivatives, which are not computed here.
_OF_SECOND_ORDER = ("adahessian",)


def optimizer_of(config: TrainConfig, vit: Network) -> torch.optim.Optimizer:
    """Create the optimizer. Raises ValueError if it cannot be used here."""
    if config.optimizer in _OF_SECOND_ORDER:
        raise ValueError(
            f"--optimizer {config.optimizer} needs second derivatives, which are not computed; the usual one "
            "is adamw"
        )
    try:
        return create_optimizer_v2(
            vit,
            opt=config.optimizer,
            lr=config.learning_rate,
            weight_decay=0.0,  # each group sets its own
            param_group_fn=lambda network: _groups(config, network),
        )
    except (AssertionError, ImportError) as error:  # it needs a GPU, or another package
        raise ValueError(
            f"--optimizer {config.optimizer} cannot be used here: {first_line(error)}; the usual one is adamw"
        ) from error


def _groups(config: TrainConfig, vit: Network) -> list[dict[str, Any]]:
    """Return timm's parameter groups, each with its learning rate scale and weight decay, and a group for the
    logits of static attention. The logits use the learning rate of the head, because both are new. They have
    no weight decay, which would pull the attention towards uniform weights."""
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        vit,
        weight_decay=config.weight_decay,
        no_weight_decay_list=vit.no_weight_decay(),
        layer_decay=config.layer_decay,
    )
    static = [each for name, each in vit.named_parameters() if is_static_logits(name) and each.requires_grad]
    if not static:
        return groups
    theirs = {id(each) for each in static}
    for group in groups:
        group["params"] = [each for each in group["params"] if id(each) not in theirs]
    return [
        *(group for group in groups if group["params"]),
        {"params": static, "lr_scale": 1.0, "weight_decay": 0.0},
    ]


def schedule_of(config: TrainConfig, optimizer: torch.optim.Optimizer, steps: int) -> Scheduler:
    """Create timm's learning rate schedule over ``steps`` steps, with a warm-up. The warm-up begins, and the
    schedule ends, at a hundredth of the peak rate."""
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=config.schedule,
        num_epochs=steps,  # the schedule is updated per step
        updates_per_epoch=1,
        step_on_epochs=False,
        min_lr=config.learning_rate / 100,
        warmup_epochs=round(steps * config.warmup_share),
        warmup_lr=config.learning_rate / 100,
        warmup_prefix=True,
    )
    return schedule
