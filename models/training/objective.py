"""The training loss: cross-entropy with the labels and, with a teacher, distillation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from models.pruned_vit import PrunedViT
from models.ragged import Tokens
from models.schedule import Pruning
from models.training.teacher import Answers, Teacher


@dataclass(frozen=True, slots=True)
class Begun:
    """Images for which everything that is not trained has been computed: ``tokens``, the result of
    `PrunedViT.begin`, and the teacher's ``answers``, None without a teacher."""

    tokens: Tokens
    answers: Answers | None

    def __len__(self) -> int:
        return len(self.tokens.patches)

    def chunk(self, parts: int) -> "list[Begun]":
        """Split the images into equal parts."""
        chunks = [each.tolist() for each in torch.arange(len(self)).chunk(parts)]
        return [Begun(self.tokens.of_images(chunk), _of_images(self.answers, chunk)) for chunk in chunks]


# What the loss of a batch is computed from.
Inputs = Float[Tensor, "B C height width"] | Begun


def loss_of(
    forward: nn.Module,
    teacher: Teacher | None,
    inputs: Inputs,
    wanted: Float[Tensor, "B classes"],
    prunings: Sequence[Pruning],
    distillation: float,
) -> tuple[Float[Tensor, ""], Bool[Tensor, " B"]]:
    """Compute the loss of the pruned network on one batch, and which images have the correct top-1 class.

    With a teacher of weight w (``distillation``), the loss is
    (1 - w) CE(label) + w (KL(teacher || student) + 1 - cos(features)). The logits of a few classes say little
    about an image, so the features before the head are also compared. A distilled model has the features of
    both heads, concatenated.

    ``forward``: a `PrunedViT`, or its wrapper for several processes, which does not take `Begun`.
    """
    begun: Tokens | None = None
    if isinstance(inputs, Begun):
        begun = inputs.tokens
    elif teacher is not None and teacher.shares_start and isinstance(forward, PrunedViT):
        begun = forward.begin(inputs)
    if begun is None:
        output = forward(inputs, prunings)
    else:
        assert isinstance(forward, PrunedViT)
        output = forward.finish(begun, prunings)
    logits = output.logits.float()
    correct = logits.argmax(1) == wanted.argmax(1)
    loss = F.cross_entropy(logits, wanted)
    if teacher is None:
        return loss, correct
    answers = _answers(teacher, inputs, begun)
    divergence = F.kl_div(
        logits.log_softmax(1), answers.logits.log_softmax(1), reduction="batchmean", log_target=True
    )
    distance = 1 - F.cosine_similarity(output.pooled.float(), answers.pooled).mean()
    return (1 - distillation) * loss + distillation * (divergence + distance), correct


def _answers(teacher: Teacher, inputs: Inputs, begun: Tokens | None) -> Answers:
    if isinstance(inputs, Begun):
        assert inputs.answers is not None
        return inputs.answers
    return teacher.answers(inputs) if begun is None else teacher.answers_from(begun)


def _of_images(answers: Answers | None, images: list[int]) -> Answers | None:
    return None if answers is None else Answers(answers.logits[images], answers.pooled[images])
