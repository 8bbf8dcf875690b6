"""Compute what is not trained once for each random view of an image, and keep it on disk.

A view is one random crop, flip and change of colors. Usually every epoch has new views. With
``--cached-views N``, epoch N + 1 has the views of epoch 1 again, and so on. For each view, the tokens
before the first stage (in bfloat16 if the run computes in it) and the teacher's answers are computed before
the first step. A step then neither reads images nor computes the frozen blocks and the teacher.
Storing the answers of the teacher is the idea of TinyViT (arXiv 2207.10666, section 3.1).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from models.files import write_whole
from models.names import shown
from models.pruned_vit import PrunedViT
from models.ragged import Packing, Tokens
from models.training.config import TrainConfig
from models.training.data import AugmentedPhotographs, StepBatches
from models.training.freezing import begin_alike, start_names
from models.training.loading import Batches, BrokenImages, refuse_a_lost_class
from models.training.objective import Begun
from models.training.outputs import OutputError
from models.training.processes import Processes
from models.training.teacher import Answers, Teacher

FOLDER = "views"
_RECORDS = "records.bin"
_STATE = "state.json"
_AT_ONCE = 32  # images

InputsOf = Callable[[UInt8[np.ndarray, "B height width 3"]], Float[Tensor, "B C height width"]]


@dataclass(frozen=True, slots=True)
class CachedBatch:
    """A batch whose start has been computed: the class of each image, and the cached results."""

    truth: Int[np.ndarray, " images"]
    begun: Begun


class CachedViews:
    """The cache of a run, in its output folder. Each view has one record of a fixed size.

    Raises ValueError if something that would be cached is trained or differs at each step.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: PrunedViT,
        teacher: Teacher | None,
        dataset: AugmentedPhotographs,
        fingerprint: Mapping[str, object],
        processes: Processes,
    ) -> None:
        if processes.count > 1:
            raise ValueError("--cached-views trains in one process; start it without torchrun")
        if not (begin_alike(model, model) if teacher is None else teacher.shares_start):
            needed = f"--frozen-blocks {min(model.stages.blocks, default=0)} or more and no --drop-path"
            same = ", and a teacher with the same first blocks and the same mean and standard deviation"
            raise ValueError(
                "--cached-views needs first blocks that are not trained: use "
                f"{needed}{'' if teacher is None else same}"
            )
        self._config, self._model, self._teacher, self._dataset = config, model, teacher, dataset
        self._device = next(model.parameters()).device
        self._dtype = torch.bfloat16 if config.bf16 else torch.float32
        channels = model.vit.patch_embed.proj.in_channels
        size = config.image_size
        self._like = self._begun(torch.zeros(1, channels, size, size, device=self._device))
        self._widths = [self._like.tokens.rows.numel() * self._dtype.itemsize]
        if self._like.answers is not None:
            answers = (self._like.answers.logits, self._like.answers.pooled)
            self._widths += [each.shape[1] * each.dtype.itemsize for each in answers]
        self._folder = config.output / FOLDER
        self._identity = _digest(fingerprint, model, None if teacher is None else teacher.model)

    @property
    def _record(self) -> int:
        return int(sum(self._widths))

    def complete(self, inputs_of: InputsOf, broken: BrokenImages) -> None:
        """Compute the views that are not in the cache yet.

        Raises BrokenImageError, OutputError if there is not enough space on the disk, and OSError.
        """
        self._folder.mkdir(exist_ok=True)
        done = self._done(broken)
        views = [
            (view, number)
            for view in range(self._config.cached_views)
            for number in range(len(self._dataset))
        ]
        self._check_space((len(views) - done) * self._record)
        left = [views[first : first + _AT_ONCE] for first in range(done, len(views), _AT_ONCE)]
        loader = Batches(self._dataset, broken, self._config.workers, batch_sampler=left)
        progress = tqdm(total=len(views), initial=done, unit="view", dynamic_ncols=True, disable=None)
        with progress, (self._folder / _RECORDS).open("r+b") as file:
            file.truncate(done * self._record)
            file.seek(0, os.SEEK_END)
            for keys, batch in zip(left, loader, strict=True):
                refuse_a_lost_class(batch, len(keys))
                if batch.broken:
                    self._save_state(broken)
                file.write(self._bytes(self._begun(inputs_of(batch.pixels))))
                progress.update(len(keys))

    def batches(self, steps: StepBatches) -> Iterator[CachedBatch]:
        """Read the batches of the steps. Raises OutputError and OSError."""
        return map(self.batch, steps)

    def batch(self, keys: Sequence[tuple[int, int]]) -> CachedBatch:
        """Read a batch from the cache; ``keys`` are (epoch, number). Raises OutputError and OSError."""
        content = np.empty((len(keys), self._record), np.uint8)
        with (self._folder / _RECORDS).open("rb", buffering=0) as file:
            for row, (epoch, number) in zip(content, keys, strict=True):
                place = (epoch % self._config.cached_views) * len(self._dataset) + number
                if os.preadv(file.fileno(), [row.data], place * self._record) < self._record:
                    raise OutputError(f"{shown(self._folder / _RECORDS)} was shortened by another program")
        truth = np.array([self._dataset.samples[number][1] for _, number in keys], np.int64)
        parts = np.split(content, np.cumsum(self._widths)[:-1], axis=1)
        like, images = self._like.tokens, len(keys)
        rows = self._tensor(parts[0], self._dtype).view(images, *like.rows.shape[1:])
        tokens = Tokens(
            rows.float(),
            Packing(like.packing.lengths * images),
            like.patches * images,
            like.ids.repeat(images),
            rotations=like.rotations,
        )
        answers = None
        if len(parts) > 1:
            answers = Answers(*(self._tensor(part, torch.float32) for part in parts[1:]))
        return CachedBatch(truth, Begun(tokens, answers))

    def remove(self) -> None:
        """Remove the cache after the last step."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @torch.no_grad()
    def _begun(self, inputs: Float[Tensor, "B C height width"]) -> Begun:
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._config.bf16):
            tokens = self._model.begin(inputs)
            answers = None if self._teacher is None else self._teacher.answers_from(tokens)
        return Begun(tokens, answers)

    def _bytes(self, begun: Begun) -> bytes:
        parts = [begun.tokens.rows.to(self._dtype)]
        if begun.answers is not None:
            parts += [begun.answers.logits, begun.answers.pooled]
        flat = [part.flatten(1).cpu().contiguous().view(torch.uint8).numpy() for part in parts]
        return np.concatenate(flat, axis=1).tobytes()

    def _tensor(self, content: UInt8[np.ndarray, "B bytes"], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(content)).view(dtype).to(self._device)

    def _done(self, broken: BrokenImages) -> int:
        """Return how many views an earlier call has computed. Those of other weights are removed."""
        records, state = self._folder / _RECORDS, self._folder / _STATE
        try:
            known = json.loads(state.read_bytes())
        except (FileNotFoundError, ValueError):
            known = {}
        if known.get("identity") != self._identity or not records.exists():
            self._save_state(broken)
            records.write_bytes(b"")
            return 0
        broken.found_before(known["broken"])
        return records.stat().st_size // self._record

    def _save_state(self, broken: BrokenImages) -> None:
        content = json.dumps({"identity": self._identity, "broken": broken.found}).encode()
        write_whole(self._folder / _STATE, lambda file: file.write(content))

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise OutputError(
                f"--cached-views {self._config.cached_views} needs {needed / 1e9:.1f} GB in "
                f"{shown(self._folder)}, where {free / 1e9:.1f} GB are free; use fewer views"
            )


def _digest(fingerprint: Mapping[str, object], model: PrunedViT, teacher: PrunedViT | None) -> str:
    """Return the SHA-256 of everything that the cached results depend on."""
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode())
    frozen = start_names(model, min(model.stages.blocks, default=0))
    tensors = [tensor for name, tensor in model.vit.state_dict().items() if name in frozen]
    tensors += [] if teacher is None else teacher.vit.state_dict().values()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
