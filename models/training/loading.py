"""Images read in advance by other processes, a batch at a time.

Batches are sent through pipes: torch would put them into shared memory, of which a container has 64 MB by
default, and which ends a training with a bus error or a hang.
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
    """An image cannot be read and the command is set to stop then, or no image is left."""


class BrokenImages:
    """Those that were met so far: each is told once, and the first stops the command if it is to."""

    def __init__(self, policy: BrokenPolicy) -> None:
        self._policy = policy
        self._found: dict[str, str] = {}

    @property
    def found(self) -> dict[str, str]:
        """Each with the reason, for the state of a run."""
        return dict(self._found)

    def found_before(self, found: Mapping[str, str]) -> None:
        """Count those of the run's earlier part, too."""
        self._found.update(found)

    def __len__(self) -> int:
        return len(self._found)

    def add(self, broken: Sequence[Broken]) -> None:
        """Raises BrokenImageError if a broken image is to stop the command."""
        for each in broken:
            if self._policy == "stop":
                raise BrokenImageError(
                    f"{each}; repair or remove it, or skip unreadable images with --broken-images skip"
                )
            self._found.setdefault(shown(each.path), each.why)

    def tell(self, of: int) -> None:
        """Log what was skipped of so many images: the count, and the first ones with their reasons. Raises
        BrokenImageError if nothing was left."""
        first = "; ".join(f"{path}: {why}" for path, why in list(self._found.items())[:_MOST_NAMES])
        more = len(self) - _MOST_NAMES
        names = first + (f"; and {more} more" if more > 0 else "")
        if len(self) >= of:
            raise BrokenImageError(f"none of the {of} images can be read: {names}")
        if self._found:
            log.warning("%s of %s images are broken and were skipped: %s", len(self), of, names)


class Batches:
    """The batches of a dataset in their order, read by ``workers`` processes, or by this one with 0.

    Either ``batch_size`` (and ``sampler``) or ``batch_sampler``, as for torch's loader. What cannot be read
    goes to ``broken``; a batch can be empty for it.
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
            # Without /dev/shm there are no semaphores, and without room for a process no process.
            log.warning(
                "reading images in the main process, because no other process can be started (%s)", error
            )
            return iter(self._in_this_process)


def evaluation_batches(
    samples: Sequence[Sample],
    spec: InputSpec,
    broken: BrokenImages,
    *,
    batch_size: int,
    workers: int,
    first: int = 0,
) -> Batches:
    """The images in a fixed order, from number ``first`` on."""
    numbers = range(first, len(samples))
    return Batches(Photographs(samples, spec), broken, workers, batch_size=batch_size, sampler=numbers)


def is_reader_death(error: RuntimeError) -> bool:
    """Whether torch says so of one of the reading processes. It may say so anywhere in this process: a
    signal's handler raises it."""
    return str(error).startswith("DataLoader worker (pid")
