"""Attention run by run: neighboring images of one length at a time."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from models.attend.dense import dense
from models.attend.heads import Attention, Parts, heads, placed
from models.ragged import Run, Tokens


@dataclass(frozen=True, slots=True)
class Runs:
    """Computes each run by `dense`, ``fused`` or not. A batch of a single length is one run."""

    fused: bool

    @property
    def rounding(self) -> int:
        """0, because new shapes are not slow."""
        return 0

    def attend(self, attn: Attention, parts: Parts, tokens: Tokens, source: Tokens, block: int) -> Tensor:
        """See `Way.attend`."""
        first, *others = parts
        rotation, source_rotation = tokens.rotation(block), source.rotation(block)
        mixed = []
        for run, source_run in tokens.packing.runs_beside(source.packing):
            own = heads(attn, run.dense(first))
            q, k, v = (*own, *(one for rows in others for one in heads(attn, source_run.dense(rows))))
            bias = None
            if source.bias is not None:
                bias = source_run.dense(source.bias.unsqueeze(1)).view(run.images, 1, 1, source_run.tokens)
            q = placed(attn, attn.q_norm, q, _of_run(rotation, run))
            k = placed(attn, attn.k_norm, k, _of_run(source_rotation, source_run))
            mixed.append(dense(attn, q, k, v, bias, fused=self.fused))
        return tokens.packing.pack(mixed)


def _of_run(
    rotation: Float[Tensor, "rows heads sin_cos"] | None, run: Run
) -> Float[Tensor, "images heads tokens sin_cos"] | None:
    if rotation is None:
        return None
    own = rotation[run.start : run.start + run.images * run.tokens]
    return own.unflatten(0, (run.images, run.tokens)).transpose(1, 2)
