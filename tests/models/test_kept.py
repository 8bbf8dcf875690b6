"""Which patches are left: one tensor for a batch, and what is read of it."""

import numpy as np
import torch

from models.kept import Kept
from models.ragged import Packing, Tokens

PREFIX = 2


def tokens(*images: list[int]) -> Tokens:
    """Of images that have these patches left."""
    ids = [one for own in images for one in (-2, -1, *own)]
    lengths = tuple(PREFIX + len(own) for own in images)
    rows = torch.zeros(len(ids), 3)
    return Tokens(rows, Packing(lengths), tuple(map(len, images)), torch.tensor(ids))


FIRST = tokens([0, 3, 4], [1, 2, 5, 6], [7])
SECOND = tokens([3], [2, 6], [7])


def lists(kept: Kept) -> list[list[list[int]]]:
    return [[image.tolist() for image in stage] for stage in kept]


def test_images_are_in_the_order_that_was_asked_for() -> None:
    """Whatever their order in the batch; counts are numbers of the host."""
    kept = Kept.of([FIRST, SECOND], PREFIX, [2, 0, 1])
    assert lists(kept) == [[[7], [0, 3, 4], [1, 2, 5, 6]], [[7], [3], [2, 6]]]
    assert kept.counts.tolist() == [[1, 3, 4], [1, 1, 2]]
    assert len(kept) == 2
    assert [image.tolist() for image in kept[-1]] == [[7], [3], [2, 6]]
    assert [[image.tolist() for image in stage] for stage in kept[1:]] == [[[7], [3], [2, 6]]]


def test_stages_that_prune_nothing_share_their_numbers() -> None:
    """An unpruned image is told once, however many stages there are."""
    kept = Kept.of([FIRST] * 3, PREFIX, [0, 1, 2])
    assert kept.ids is FIRST.ids
    assert lists(kept) == [[[0, 3, 4], [1, 2, 5, 6], [7]]] * 3


def test_without_stages_nothing_is_told() -> None:
    """Of two images of a model without stages."""
    kept = Kept.of([], PREFIX, [0, 1])
    assert lists(kept) == []
    assert kept.counts.shape == (0, 2)
    assert kept.on_host() == [(), ()]


def test_images_can_be_replaced() -> None:
    """By those of another pass, as a cascade does with what it ran again."""
    again = Kept.of([tokens([0, 1, 2]), tokens([0, 1, 2])], PREFIX, [0])
    kept = Kept.of([FIRST, SECOND], PREFIX, [0, 1, 2])
    assert lists(kept.replaced([1], again)) == [[[0, 3, 4], [0, 1, 2], [7]], [[3], [0, 1, 2], [7]]]
    assert lists(kept) == [[[0, 3, 4], [1, 2, 5, 6], [7]], [[3], [2, 6], [7]]]


def test_the_host_gets_the_same() -> None:
    """Image by image, as arrays."""
    on_host = Kept.of([FIRST, SECOND], PREFIX, [1, 0, 2]).on_host()
    assert [[stage.tolist() for stage in image] for image in on_host] == [
        [[1, 2, 5, 6], [2, 6]],
        [[0, 3, 4], [3]],
        [[7], [7]],
    ]
    assert isinstance(on_host[0][0], np.ndarray)
