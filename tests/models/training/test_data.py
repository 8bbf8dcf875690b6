"""Broken images among those that are trained on and evaluated."""

from pathlib import Path

import numpy as np
import pytest

from models.training.data import AugmentedPhotographs, Photographs, Sample, StepBatches
from models.training.folders import class_folders
from models.training.loading import Batches, BrokenImageError, BrokenImages, evaluation_batches
from models.transforms import InputSpec
from tests.models.training.conftest import Break

SPEC = InputSpec((16, 24), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def samples_of(folder: Path) -> list[Sample]:
    images = class_folders(folder).images
    return [(path, truth) for truth, paths in enumerate(images.values()) for path in paths]


def test_a_broken_image_is_left_out_and_the_others_keep_their_numbers(
    pictures: Path, break_it: Break, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is broken about it: it is counted and named, and all else is as without it."""
    whole = Photographs(samples_of(pictures), SPEC)
    expected = [whole[number].pixels for number in range(15)]
    break_it(pictures / "blue" / "2.png")
    broken = BrokenImages("skip")
    batches = list(evaluation_batches(samples_of(pictures), SPEC, broken, batch_size=4, workers=0))
    numbers = [number for batch in batches for number in batch.numbers.tolist()]
    assert numbers == [*range(7), *range(8, 15)]
    pixels = np.concatenate([batch.pixels for batch in batches])
    for number, read in zip(numbers, pixels, strict=True):
        assert np.array_equal(read, expected[number])
    assert [len(batch.broken) for batch in batches] == [0, 1, 0, 0]
    broken.tell(of=15)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"1 of 15 images are broken and were skipped: {pictures}/blue/2.png: "
    )
    assert "\n" not in record.getMessage()


def test_a_broken_image_stops_where_it_is_to(pictures: Path, break_it: Break) -> None:
    """By its name, with what to do."""
    break_it(pictures / "blue" / "2.png")
    batches = evaluation_batches(samples_of(pictures), SPEC, BrokenImages("stop"), batch_size=4, workers=0)
    with pytest.raises(BrokenImageError, match=r"blue/2\.png: .*; repair or remove it, or .*--broken-images"):
        list(batches)


def test_a_batch_may_be_empty(pictures: Path) -> None:
    """And where nothing at all can be read, that is said."""
    for path in (pictures / "amber").iterdir():
        path.write_bytes(b"")
    broken = BrokenImages("skip")
    batches = list(evaluation_batches(samples_of(pictures), SPEC, broken, batch_size=5, workers=0))
    assert [len(batch.numbers) for batch in batches] == [0, 5, 5]
    with pytest.raises(BrokenImageError, match="none of the 5 images can be read: "):
        broken.tell(of=5)


def test_in_training_the_next_image_of_the_class_stands_in(pictures: Path, break_it: Break) -> None:
    """The batch stays whole, the class is the same, and the other images are seen as without it."""
    dataset = AugmentedPhotographs(samples_of(pictures), size=24, min_crop=0.3, seed=0)
    before = [dataset[3, number].pixels for number in range(15)]
    break_it(pictures / "blue" / "4.png")  # the last one of its class: the first stands in
    again = AugmentedPhotographs(samples_of(pictures), size=24, min_crop=0.3, seed=0)
    for number in range(15):
        item = again[3, number]
        assert item.truth == number // 5
        assert item.pixels is not None
        assert len(item.broken) == (number == 9)
        assert np.array_equal(item.pixels, before[number]) == (number != 9)
    assert np.array_equal(again[3, 9].pixels, again[3, 9].pixels)


def test_batches_with_broken_images_do_not_depend_on_the_number_of_workers(pictures: Path) -> None:
    """Which image stands in follows from the files alone."""
    for name in ("amber/0.png", "blue/2.png", "blue/3.png"):
        (pictures / name).write_bytes(b"")
    runs = []
    for workers in (0, 1, 2):
        keys = StepBatches(images=15, batch_size=4, epochs=2, seed=3, first_step=0)
        dataset = AugmentedPhotographs(samples_of(pictures), size=24, min_crop=0.3, seed=0)
        broken = BrokenImages("skip")
        runs.append((list(Batches(dataset, broken, workers, batch_sampler=keys)), broken.found))
    for batches, found in runs[1:]:
        assert found == runs[0][1]
        for one, other in zip(batches, runs[0][0], strict=True):
            assert np.array_equal(one.pixels, other.pixels)
            assert np.array_equal(one.truth, other.truth)
    assert len(runs[0][1]) == 3


def test_a_class_without_readable_images_is_no_batch(pictures: Path) -> None:
    """Nothing of another class stands in."""
    for path in (pictures / "blue").iterdir():
        path.write_bytes(b"")
    dataset = AugmentedPhotographs(samples_of(pictures), size=24, min_crop=0.3, seed=0)
    item = dataset[0, 7]
    assert item.pixels is None
    assert len(item.broken) == 5
