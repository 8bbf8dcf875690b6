"""Load batches of images in worker processes.

Batches are sent through pipes as numpy arrays. torch would use shared memory for tensors. A container has
only 64 MB of it by default, and exceeding that ends training with a bus error or a hang.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from models.names import shown
from models.training.config import BrokenPolicy
from models.training.data import Batch, Item, Photographs, Sample, joined
from models.training.reading import Broken
from models.transforms import InputSpec

log = logging.getLogger(__name__)

_MOST_NAMES = 5


class BrokenImageError(ValueError):
    """An image cannot be read and the policy is to stop, or no readable image is left."""


class BrokenImages:
    """Collects the broken images found so far, each once. With the policy "stop", the first one raises."""

    def __init__(self, policy: BrokenPolicy) -> None:
        self._policy = policy
        self._found: dict[str, str] = {}

    @property
    def found(self) -> dict[str, str]:
        """The reason for each broken image, for the resume state."""
        return dict(self._found)

    def found_before(self, found: Mapping[str, str]) -> None:
        """Add broken images from an earlier part of the run."""
        self._found.update(found)

    def __len__(self) -> int:
        return len(self._found)

    def add(self, broken: Sequence[Broken]) -> None:
        """Record broken images. Raises BrokenImageError if the policy is to stop."""
        for each in broken:
            if self._policy == "stop":
                raise BrokenImageError(
                    f"{each}; repair or remove it, or skip unreadable images with --broken-images skip"
                )
            self._found.setdefault(shown(each.path), each.why)

    def tell(self, of: int) -> None:
        """Log how many of the ``of`` images were skipped, and the first ones with their reasons. Raises
        BrokenImageError if all of them are broken."""
        first = "; ".join(f"{path}: {why}" for path, why in list(self._found.items())[:_MOST_NAMES])
        more = len(self) - _MOST_NAMES
        names = first + (f"; and {more} more" if more > 0 else "")
        if len(self) >= of:
            raise BrokenImageError(f"none of the {of} images can be read: {names}")
        if self._found:
            log.warning("%s of %s images are broken and were skipped: %s", len(self), of, names)


class Batches:
    """The batches of a dataset in order, read by ``workers`` processes, or in this process if it is 0.

    ``batching`` is either ``batch_size`` (and ``sampler``) or ``batch_sampler``, as for torch's DataLoader.
    Images that cannot be read are added to ``broken``, so a batch can be empty.
    """

    def __init__(self, dataset: Dataset[Item], broken: BrokenImages, workers: int, **batching: Any) -> None:
        self._broken = broken
        self._loader = DataLoader(dataset, num_workers=workers, collate_fn=joined, **batching)
        self._in_this_process = DataLoader(dataset, collate_fn=joined, **batching)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Raises BrokenImageError."""
        for batch in self._started():
            self._broken.add(batch.broken)
            yield batch

    def _started(self) -> Iterator[Batch]:
        try:
            return iter(self._loader)
        except (ImportError, OSError) as error:
            # There may be no /dev/shm for semaphores, or no resources for another process.
            log.warning(
                "reading images in the main process, because no other process can be started (%s)", error
            )
            return iter(self._in_this_process)


def refuse_a_lost_class(batch: Batch, images: int) -> None:
    """Raise BrokenImageError if a batch has fewer ``images`` than it should. A broken image is replaced by
    another one of its class, so this means that a class has no readable image."""
    if len(batch.numbers) < images:
        folder = batch.broken[-1].path.parent
        raise BrokenImageError(f"none of the images of {shown(folder)} can be read: {batch.broken[-1]}")


def evaluation_batches(
    samples: Sequence[Sample],
    spec: InputSpec,
    broken: BrokenImages,
    *,
    batch_size: int,
    workers: int,
    first: int = 0,
) -> Batches:
    """Load the images in their order, starting at index ``first``."""
    numbers = range(first, len(samples))
    return Batches(Photographs(samples, spec), broken, workers, batch_size=batch_size, sampler=numbers)


def is_reader_death(error: RuntimeError) -> bool:
    """Whether the error reports the death of a DataLoader worker. torch raises it from a signal handler, so
    it can occur anywhere in this process."""
    return str(error).startswith("DataLoader worker (pid")
