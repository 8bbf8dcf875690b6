"""The teacher of a run: an unpruned network whose answers the student learns (distillation)."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from models.load import LoadedModel, ModelError
from models.normalise import renormalise
from models.pruned_vit import PrunedViT
from models.ragged import Tokens
from models.schedule import UNPRUNED
from models.training.freezing import begin_alike
from models.transforms import InputSpec


@dataclass(frozen=True, slots=True)
class Answers:
    """What the teacher computes for a batch: ``logits``, and ``pooled``, the input of its head."""

    logits: Float[Tensor, "B classes"]
    pooled: Float[Tensor, "B pooled"]


@dataclass(frozen=True, slots=True)
class Teacher:
    """``convert`` makes the teacher's inputs from the student's, None if they are the same.

    ``shares_start``: whether the student's computation before the first stage is also the teacher's and is
    not trained (`freezing.begin_alike`).
    """

    model: PrunedViT
    convert: Callable[[Float[Tensor, "B C height width"]], Float[Tensor, "B C height width"]] | None = None
    shares_start: bool = False

    @classmethod
    def of(cls, loaded: LoadedModel, student: PrunedViT, spec: InputSpec, device: str) -> "Teacher":
        """Make a loaded model the teacher of ``student``, whose input is ``spec``. Raises ModelError if it is
        another network."""
        _check_alike(loaded, student)
        model = loaded.model.to(device).requires_grad_(requires_grad=False)
        convert = renormalise(spec, loaded.input, torch.device(device))
        return cls(model, convert, convert is None and begin_alike(student, model))

    @torch.no_grad()
    def answers(self, inputs: Float[Tensor, "B C height width"]) -> Answers:
        """Compute the answers for the student's inputs."""
        seen = inputs if self.convert is None else self.convert(inputs)
        return self.answers_from(self.model.begin(seen))

    @torch.no_grad()
    def answers_from(self, begun: Tokens) -> Answers:
        """Compute the answers from the teacher's, or a shared, result of `PrunedViT.begin`."""
        output = self.model.finish(begun, [UNPRUNED] * len(begun.patches))
        return Answers(output.logits.float(), output.pooled.float())


def _check_alike(teacher: LoadedModel, student: PrunedViT) -> None:
    """Raise ModelError if the teacher differs from the student in architecture, image size or number of
    classes.

    The patch grid may differ, and so may the blocks that attend to clusters or have static attention. The
    loss compares the features before the head, not patches.
    """
    differ = [
        f"{name} {theirs}, not {ours}"
        for name, theirs, ours in (
            ("image size", teacher.model.vit.patch_embed.img_size, student.vit.patch_embed.img_size),
            *(
                (field.name, getattr(teacher.model.arch, field.name), getattr(student.arch, field.name))
                for field in fields(student.arch)
                if field.name not in ("grid", "paca", "static_blocks")
            ),
        )
        if theirs != ours
    ]
    if differ:
        raise ModelError(f"the teacher is another network than the student: {'; '.join(differ)}")
