"""Image folders as training and evaluation data."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from models.transforms import InputSpec, photograph, to_pixels


class Photographs(Dataset[tuple[Tensor, int]]):
    """uint8 pixels [height, width, 3] and the class index, preprocessed as in serving."""

    def __init__(self, folder: Path, spec: InputSpec) -> None:
        self.samples = ImageFolder(str(folder)).samples
        self.spec = spec

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        with Image.open(path) as image:
            return torch.from_numpy(np.array(to_pixels(image, self.spec))), label


class UnlabelledPhotographs(Dataset[Tensor]):
    """uint8 pixels [height, width, 3] of every image file in a folder and its sub-folders, by path."""

    def __init__(self, folder: Path, spec: InputSpec) -> None:
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
        if not self.paths:
            raise FileNotFoundError(
                f"there are no images in {folder} (looked for {', '.join(IMG_EXTENSIONS)})"
            )
        self.spec = spec

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return torch.from_numpy(np.array(to_pixels(image, self.spec)))


class AugmentedPhotographs(Dataset[tuple[Tensor, int]]):
    """Random crops, flips and colours. An item's key is (epoch, index): its randomness follows from the key
    and the seed alone, so a resumed run sees what an uninterrupted one would, with any number of workers."""

    def __init__(self, folder: Path, size: int, min_crop: float, seed: int) -> None:
        self.samples = ImageFolder(str(folder)).samples
        self.seed = seed
        self.augment = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(min_crop, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3),
            ]
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        path, label = self.samples[index]
        with Image.open(path) as image, torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, epoch, index)))
            return torch.from_numpy(np.array(self.augment(photograph(image)))), label


class StepBatches(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) keys of each step from ``first_step`` on: every epoch a new seeded shuffle, the
    last incomplete batch of an epoch left out."""

    def __init__(self, images: int, batch_size: int, epochs: int, seed: int, first_step: int) -> None:
        if images < batch_size:
            raise ValueError(f"{images} training images, but a batch has {batch_size}; lower the batch size")
        self.images = images
        self.batch_size = batch_size
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
            yield [(epoch, index) for index in chosen]


def evaluation_batches(
    folder: Path, spec: InputSpec, batch_size: int, workers: int, limit: int | None, first_image: int = 0
) -> DataLoader[tuple[Tensor, int]]:
    """The images of a folder and their classes in a fixed order; with a limit, so many at even distances.
    Of these, all from number ``first_image`` on."""
    photographs = Photographs(folder, spec)
    places = spread(len(photographs), limit)[first_image:]
    return DataLoader(Subset(photographs, places), batch_size, num_workers=workers)


def unlabelled_batches(
    folder: Path, spec: InputSpec, batch_size: int, workers: int, limit: int | None
) -> DataLoader[Tensor]:
    """Likewise, without classes. Raises FileNotFoundError where there is no image."""
    photographs = UnlabelledPhotographs(folder, spec)
    places = spread(len(photographs), limit)
    return DataLoader(Subset(photographs, places), batch_size, num_workers=workers)


def spread(total: int, limit: int | None) -> list[int]:
    """The places of all images, or of as many as the limit allows, at even distances."""
    images = total if limit is None else min(limit, total)
    return [place * total // images for place in range(images)]


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders, in class-index order."""
    return ImageFolder(str(folder)).classes
