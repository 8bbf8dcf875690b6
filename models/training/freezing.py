"""Frozen blocks, and the computations that they save."""

import torch
from timm.models import group_parameters

from models.pruned_vit import PrunedViT


def freeze_first_blocks(model: PrunedViT, count: int) -> None:
    """Let so many blocks and all that comes before them stay as they are. Raises ValueError if no
    block would be left to train."""
    if count == 0:
        return
    if count >= model.arch.depth:
        raise ValueError(
            f"--frozen-blocks {count} leaves no block to train: the network has {model.arch.depth}, so at "
            f"most {model.arch.depth - 1} can be frozen"
        )
    start = _start(model, count)
    for name, parameter in model.vit.named_parameters():
        if name in start:
            parameter.requires_grad_(requires_grad=False)


def begin_alike(student: PrunedViT, teacher: PrunedViT) -> bool:
    """Whether `PrunedViT.begin` gives the same for both and nothing of it is trained: once is then enough."""
    first_stages = {min(model.stages.blocks, default=0) for model in (student, teacher)}
    if len(first_stages) > 1 or student.arch != teacher.arch:
        return False
    if any(getattr(module, "drop_prob", 0) for module in student.modules()):
        return False  # the student's blocks are left out at random
    own, others = student.vit.state_dict(), teacher.vit.state_dict()
    trained = {name for name, parameter in student.vit.named_parameters() if parameter.requires_grad}
    return all(
        name not in trained and torch.equal(own[name], others[name])
        for name in _start(student, *first_stages)
    )


def _start(model: PrunedViT, blocks: int) -> set[str]:
    """The parameters of so many blocks and of all that comes before them."""
    # 0: what comes before the blocks; then one number a block, as layer_decay counts.
    numbers = group_parameters(model.vit, model.vit.group_matcher(coarse=False), reverse=True)
    return {name for name, number in numbers.items() if number <= blocks}
