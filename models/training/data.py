"""Datasets for training and evaluation: images, their order, random augmentation and classes."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from timm.data.auto_augment import (
    augment_and_mix_transform,
    auto_augment_transform,
    rand_augment_transform,
)
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

from models.image_files import contents, decoded_endings, told
from models.training.folders import check_is_a_folder
from models.training.reading import Broken, Pixels, pixels, whole
from models.transforms import InputSpec

# The path of an image and its class index.
Sample = tuple[Path, int]


@dataclass(frozen=True)
class Item:
    """One item of a batch. ``number``: the index of the image. ``truth``: its class index. ``pixels``: None
    if no image could be read. ``broken``: the images that could not be read."""

    number: int
    truth: int
    pixels: Pixels | None
    broken: tuple[Broken, ...] = ()


@dataclass(frozen=True)
class Batch:
    """A batch: the images that could be read, with their numbers and classes, and the ``broken`` ones."""

    numbers: Int[np.ndarray, " images"]
    truth: Int[np.ndarray, " images"]
    pixels: UInt8[np.ndarray, "images height width 3"]
    broken: tuple[Broken, ...]


def joined(items: Sequence[Item]) -> Batch:
    """Collate items into a batch."""
    read = [item for item in items if item.pixels is not None]
    arrays = [item.pixels for item in read if item.pixels is not None]
    return Batch(
        np.array([item.number for item in read], np.int64),
        np.array([item.truth for item in read], np.int64),
        np.stack(arrays) if arrays else np.empty((0, 0, 0, 3), np.uint8),
        tuple(broken for item in items for broken in item.broken),
    )


class Photographs(Dataset[Item]):
    """Dataset of images that are preprocessed as in serving."""

    def __init__(self, samples: Sequence[Sample], spec: InputSpec) -> None:
        self.samples = samples
        self.spec = spec

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> Item:
        path, truth = self.samples[number]
        read = pixels(path, self.spec)
        if isinstance(read, Broken):
            return Item(number, truth, None, (read,))
        return Item(number, truth, read)


class AugmentedPhotographs(Dataset[Item]):
    """Dataset of images with random crops, flips and color jitter. ``auto_augment``, one of timm's policies,
    replaces the color jitter.

    The key of an item is (epoch, number). Its randomness depends only on the key and ``seed``, so a resumed
    run gets the same images as an uninterrupted one, with any number of workers.

    An image that cannot be read is replaced by the next readable one of its class. This keeps batches
    complete and class weights unchanged, and the choice depends only on the files. ``samples`` are in the
    order of their classes. Raises ValueError for an ``auto_augment`` that timm does not know.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        size: int,
        min_crop: float,
        seed: int,
        auto_augment: str | None = None,
    ) -> None:
        self.samples = samples
        self.seed = seed
        self.augment = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(min_crop, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3)
                if auto_augment is None
                else _auto_augment(auto_augment, size),
            ]
        )
        self._of_class: dict[int, list[int]] = {}
        for number, (_, truth) in enumerate(samples):
            self._of_class.setdefault(truth, []).append(number)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, number = key
        truth = self.samples[number][1]
        alike = self._of_class[truth]
        first = alike.index(number)
        broken: list[Broken] = []
        with _own_randomness():
            for other in alike[first:] + alike[:first]:
                _seed(hash((self.seed, epoch, number)))
                read = whole(self.samples[other][0], self.augment)
                if not isinstance(read, Broken):
                    return Item(number, truth, read, tuple(broken))
                broken.append(read)
        return Item(number, truth, None, tuple(broken))


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Context that restores the random generators of Python, numpy and torch (on the CPU) on exit."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(of_python)
    np.random.set_state(of_numpy)


def _seed(seed: int) -> None:
    """Seed all random generators: torchvision uses torch's, timm uses Python's and numpy's."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _auto_augment(text: str, size: int) -> Callable[[Image.Image], Image.Image]:
    """Create timm's transform for a policy. Areas outside the image are filled with gray. Raises ValueError
    for an unknown policy."""
    settings = {"translate_const": int(size * 0.45), "img_mean": (128, 128, 128)}
    makers = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    try:
        return makers.get(text.partition("-")[0], auto_augment_transform)(text, settings)
    except (AssertionError, IndexError, KeyError, ValueError) as error:
        raise ValueError(
            f"--auto-augment {text!r} is not a policy of timm; use for example rand-m9-mstd0.5-inc1, "
            "augmix-m3-w3 or original"
        ) from error


class StepBatches(Sampler[list[tuple[int, int]]]):
    """Batch sampler that yields the (epoch, number) keys of each step, starting at ``first_step``.

    Each epoch is shuffled anew, depending on ``seed``, and its last incomplete batch is dropped. Each of
    ``count`` processes gets an equal share of a batch, according to its ``rank``. Raises ValueError if there
    are fewer images than a batch, or if a batch cannot be divided equally.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        epochs: int,
        seed: int,
        first_step: int,
        rank: int = 0,
        count: int = 1,
    ) -> None:
        if images < batch_size:
            raise ValueError(
                f"there are {images} training images, but a batch has {batch_size}; use --batch-size "
                f"{images} or less"
            )
        if batch_size % count:
            raise ValueError(f"a batch of {batch_size} images cannot be divided among {count} processes")
        self.images = images
        self.batch_size = batch_size
        self.rank, self.count = rank, count
        self.seed = seed
        self.first_step = first_step
        self.steps_per_epoch = images // batch_size
        self.steps = self.steps_per_epoch * epochs

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shuffled_epoch, order = -1, []
        for step in range(self.first_step, self.steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != shuffled_epoch:
                generator = torch.Generator().manual_seed(hash((self.seed, epoch)))
                shuffled_epoch, order = epoch, torch.randperm(self.images, generator=generator).tolist()
            chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
            yield [(epoch, number) for number in chosen[self.rank :: self.count]]


def spread(total: int, limit: int | None) -> list[int]:
    """Return the indices of all items, or of ``limit`` evenly spaced ones."""
    images = total if limit is None else min(limit, total)
    return [place * total // images for place in range(images)]


def spread_samples(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """Return all samples, or ``limit`` evenly spaced ones."""
    return [samples[place] for place in spread(len(samples), limit)]


def unlabelled(folder: Path) -> tuple[list[Sample], tuple[str, ...]]:
    """List the images of a folder and its sub-folders by path, all with class 0, and remarks for the user
    about skipped files. Raises FileNotFoundError if there are no images, FolderError and OSError."""
    check_is_a_folder(folder)
    found = contents(folder)
    if not found.images:
        raise FileNotFoundError(f"there are no images in {folder} (looked for {_looked_for()})")
    remarks = (told(found.passed_over, folder),) if found.passed_over else ()
    return [(path, 0) for path in found.images], remarks


def _looked_for() -> str:
    return ", ".join(sorted(decoded_endings()))
