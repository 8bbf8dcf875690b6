"""The training loss: cross-entropy with the labels and, with a teacher, distillation."""

from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from models.load import LoadedModel, ModelError
from models.pruned_vit import PrunedViT
from models.ragged import Tokens
from models.schedule import UNPRUNED, Pruning


def loss_of(
    forward: nn.Module,
    teacher: PrunedViT | None,
    inputs: Float[Tensor, "B C height width"],
    wanted: Float[Tensor, "B classes"],
    prunings: Sequence[Pruning],
    distillation: float,
    *,
    begun_once: bool = False,
    for_teacher: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Float[Tensor, ""], Bool[Tensor, " B"]]:
    """Compute the loss of the pruned network on one batch, and which images have the correct top-1 class.

    With a teacher of weight w (``distillation``), the loss is
    (1 - w) CE(label) + w (KL(teacher || student) + 1 - cos(features)). The logits of a few classes say little
    about an image, so the features before the head are also compared. A distilled model has the features of
    both heads, concatenated.

    ``forward``: a `PrunedViT`, or its wrapper for several processes. ``begun_once``: student and teacher
    share the computation before the first stage (`freezing.begin_alike`). ``for_teacher``: converts inputs
    for a teacher with another mean and standard deviation.
    """
    begun: Tokens | None = None
    if begun_once and isinstance(forward, PrunedViT):
        begun = forward.begin(inputs)
        output = forward.finish(begun, prunings)
    else:
        output = forward(inputs, prunings)
    logits = output.logits.float()
    correct = logits.argmax(1) == wanted.argmax(1)
    loss = F.cross_entropy(logits, wanted)
    if teacher is None:
        return loss, correct
    with torch.no_grad():
        unpruned = [UNPRUNED] * len(inputs)
        seen = inputs if for_teacher is None else for_teacher(inputs)
        whole = teacher(seen, unpruned) if begun is None else teacher.finish(begun, unpruned)
        answers = whole.logits.float()
    divergence = F.kl_div(
        logits.log_softmax(1), answers.log_softmax(1), reduction="batchmean", log_target=True
    )
    distance = 1 - F.cosine_similarity(output.pooled.float(), whole.pooled.float()).mean()
    return (1 - distillation) * loss + distillation * (divergence + distance), correct


def check_teacher(teacher: LoadedModel, model: PrunedViT) -> None:
    """Raise ModelError if the teacher differs from the student in architecture, image size or number of
    classes.

    The patch grid may differ, and so may the blocks that attend to clusters or have static attention. The
    loss compares the features before the head, not patches.
    """
    differ = [
        f"{name} {theirs}, not {ours}"
        for name, theirs, ours in (
            ("image size", teacher.model.vit.patch_embed.img_size, model.vit.patch_embed.img_size),
            *(
                (field.name, getattr(teacher.model.arch, field.name), getattr(model.arch, field.name))
                for field in fields(model.arch)
                if field.name not in ("grid", "paca", "static_blocks")
            ),
        )
        if theirs != ours
    ]
    if differ:
        raise ModelError(f"the teacher is another network than the student: {'; '.join(differ)}")
