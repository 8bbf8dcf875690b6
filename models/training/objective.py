"""The loss of a step: the distance to the labels and, with a teacher, to its outputs."""

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
    """Loss of the pruned network on one batch, and whose first label is right.

    With a teacher, and w its weight: (1 - w) CE(label) + w (KL(teacher || student) + 1 - cos(features)). The
    logits of a few classes say little about an image; the teacher's features, which the head reads, say
    what the pruned network should still have seen. Of a distilled model they are those of both heads, end to
    end. ``forward``: the network as a `PrunedViT`, or what several processes wrap that in. ``begun_once``:
    the teacher begins like it (`freezing.begin_alike`). ``for_teacher``: makes of the inputs those of a
    teacher with another mean and standard deviation.
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
    """Raises ModelError if the teacher's architecture, image size or number of classes are others than
    the student's.

    Its patches may be other ones, and other blocks of it may attend to clusters or have static attention:
    features that the head reads are compared, not patches.
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
