"""Freeze the first blocks of a network, and share their computation with a teacher."""

import torch
from timm.models import group_parameters

from models.pruned_vit import PrunedViT


def freeze_first_blocks(model: PrunedViT, count: int) -> None:
    """Freeze the first ``count`` blocks and everything before them. Raises ValueError if no block would be
    left to train."""
    if count == 0:
        return
    if count >= model.arch.depth:
        raise ValueError(
            f"--frozen-blocks {count} leaves no block to train: the network has {model.arch.depth}, so at "
            f"most {model.arch.depth - 1} can be frozen"
        )
    start = start_names(model, count)
    for name, parameter in model.vit.named_parameters():
        if name in start:
            parameter.requires_grad_(requires_grad=False)


def begin_alike(student: PrunedViT, teacher: PrunedViT) -> bool:
    """Whether `PrunedViT.begin` computes the same for both and none of its weights are trained, so that it
    needs to run only once."""
    first_stages = {min(model.stages.blocks, default=0) for model in (student, teacher)}
    if len(first_stages) > 1 or student.arch != teacher.arch:
        return False
    if any(getattr(module, "drop_prob", 0) for module in student.modules()):
        return False  # stochastic depth skips blocks of the student at random
    own, others = student.vit.state_dict(), teacher.vit.state_dict()
    trained = {name for name, parameter in student.vit.named_parameters() if parameter.requires_grad}
    return all(
        name not in trained and torch.equal(own[name], others[name])
        for name in start_names(student, *first_stages)
    )


def start_names(model: PrunedViT, blocks: int) -> set[str]:
    """Return the names of the parameters of the first ``blocks`` blocks and everything before them."""
    # Group 0 is everything before the blocks, then one group per block, as for layer_decay.
    numbers = group_parameters(model.vit, model.vit.group_matcher(coarse=False), reverse=True)
    return {name for name, number in numbers.items() if number <= blocks}
