"""What becomes of patches that are not kept, worked out by hand and by properties."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from models.reducers import fuse, merge


def test_fuse_by_hand() -> None:
    """Of patches 0 to 3 with attention 1, 2, 3, 4, dropping 1 and 3 leaves (2 * x1 + 4 * x3) / 6."""
    patches = torch.tensor([[[1.0, 0.0], [3.0, 6.0], [5.0, 5.0], [9.0, 0.0]]])
    fused = fuse(patches, torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0, 2]]))
    torch.testing.assert_close(fused, torch.tensor([[[7.0, 2.0]]]))


def test_fuse_of_patches_without_attention_is_their_mean() -> None:
    """Weights that underflowed must not give 0 / 0."""
    patches = torch.tensor([[[1.0], [2.0], [6.0]]])
    fused = fuse(patches, torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0]]))
    assert fused.tolist() == [[[4.0]]]


def test_merge_by_hand() -> None:
    """Patch 3 is most like patch 2 and goes into it; sizes weigh the mean; the others stay in order."""
    patches = torch.tensor([[[0.0], [10.0], [4.0], [8.0]]])
    keys = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.1, 1.0]]])
    sizes = torch.tensor([[1.0, 1.0, 3.0, 1.0]])
    merged, merged_sizes, positions = merge(patches, keys, sizes, 3)
    assert merged.tolist() == [[[0.0], [10.0], [5.0]]]
    assert merged_sizes.tolist() == [[1.0, 1.0, 4.0]]
    assert positions.tolist() == [[0, 1, 2]]


def test_several_into_one() -> None:
    """Both odd patches are like patch 0: all three become one, of size 3."""
    patches = torch.tensor([[[3.0], [6.0], [1.0], [0.0]]])
    keys = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, -0.1]]])
    merged, sizes, positions = merge(patches, keys, torch.ones(1, 4), 2)
    assert merged.tolist() == [[[3.0], [1.0]]]
    assert sizes.tolist() == [[3.0, 1.0]]
    assert positions.tolist() == [[0, 2]]


@given(data=st.data())
def test_merging_keeps_what_it_must(data: st.DataObject) -> None:
    """Whatever is merged: the number asked for is left, sizes sum to the patches there were, the mean over
    all (by size) stays what it was, and positions ascend."""
    images, patches = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
    count = data.draw(st.integers(1, patches))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    values = torch.randn(images, patches, 3, generator=generator, dtype=torch.float64)
    keys = torch.randn(images, patches, 4, generator=generator)
    merged, sizes, positions = merge(values, keys, torch.ones(images, patches), count)
    assert merged.shape == (images, count, 3)
    assert sizes.sum(dim=1).tolist() == [patches] * images
    mean = (merged * sizes.unsqueeze(2)).sum(dim=1) / patches
    torch.testing.assert_close(mean, values.mean(dim=1), rtol=0, atol=1e-5)
    assert (positions.diff(dim=1) > 0).all()


@given(data=st.data())
def test_each_image_is_merged_by_itself(data: st.DataObject) -> None:
    """An image in a batch is merged as it is alone."""
    patches = data.draw(st.integers(2, 20))
    count = data.draw(st.integers(1, patches))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    values, keys = (
        torch.randn(3, patches, 5, generator=generator),
        torch.randn(3, patches, 4, generator=generator),
    )
    together = merge(values, keys, torch.ones(3, patches), count)
    for image in range(3):
        alone = merge(values[image : image + 1], keys[image : image + 1], torch.ones(1, patches), count)
        assert torch.equal(together[0][image], alone[0][0])
        assert torch.equal(together[1][image], alone[1][0])
        assert torch.equal(together[2][image], alone[2][0])
