"""Other image sizes, and overlapping patches: the patch convolution has a smaller stride than its kernel.

The patches keep their size and lie closer together, so there are more of them. Kernel, bias and all other
weights are unchanged; only the position embedding is resampled to the new grid.
"""

from functools import partial

from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models.eva import Eva
from torch import nn

from models.families import Network, UnsupportedModelError
from models.static_attention import static_blocks_of


def set_patch_stride(vit: Network, stride: int) -> None:
    """Set the patch stride of ``vit``, in pixels, in both directions and in place.

    A stride of the kernel size gives the usual grid, a smaller one gives overlapping patches. Does nothing if
    ``vit`` already has this stride. The prefix tokens keep their position embedding. Set the image size
    first: timm's `set_input_size` would restore the usual grid.

    Raises UnsupportedModelError if the patch embedding is not timm's PatchEmbed with a fixed image size or if
    positions are rotary, and ValueError for a stride below 1 or above the kernel size (which would skip
    pixels) and for a network with static attention, which is tied to its grid.
    """
    embed = vit.patch_embed
    if isinstance(vit, Eva):
        raise UnsupportedModelError(
            "its position embedding is rotary, so its patches cannot overlap (--patch-stride)"
        )
    if type(embed) is not PatchEmbed:
        raise UnsupportedModelError(
            f"its patch embedding is {type(embed).__name__}, but only timm's PatchEmbed supports a patch "
            "stride"
        )
    if vit.dynamic_img_size or embed.dynamic_img_pad:
        raise UnsupportedModelError("its patch grid depends on the image (dynamic_img_size or _pad)")
    kernel = embed.proj.kernel_size
    if not 1 <= stride <= min(kernel):
        raise ValueError(
            f"a patch stride of {stride} is out of range: the patches have {kernel[0]} x {kernel[1]} pixels, "
            f"which allows 1 to {min(kernel)}"
        )
    if embed.proj.stride == (stride, stride):
        return
    _refuse_static(vit, "patch stride")
    grid_before = embed.grid_size
    embed.proj.stride = (stride, stride)
    # timm's PatchEmbed computes these from its patch size, assuming that it equals the stride.
    embed.dynamic_feat_size = partial(patch_grid, kernel=kernel, stride=(stride, stride))
    embed.grid_size = embed.dynamic_feat_size(embed.img_size)
    _resample(vit, grid_before)


def check_image_size(size: tuple[int, int], patch: tuple[int, int], stride: tuple[int, int]) -> None:
    """Raise ValueError if images of ``size`` (height, width in pixels) are smaller than a patch, or if
    patches do not overlap and a side is not a multiple of the patch size."""
    if size[0] < patch[0] or size[1] < patch[1]:
        raise ValueError(
            f"an input of {size[0]} x {size[1]} pixels is smaller than a patch, which has {patch[0]} x "
            f"{patch[1]}"
        )
    for side, length in zip(size, patch, strict=True):
        if stride == patch and side % length:
            raise ValueError(
                f"an input of {size[0]} x {size[1]} pixels cannot be cut into patches of {patch[0]} x "
                f"{patch[1]}: {side} is not a multiple of {length}; the nearest is "
                f"{round(side / length) * length}"
            )


def set_image_size(vit: Network, size: tuple[int, int]) -> None:
    """Set the image size of ``vit`` (height, width in pixels), in place.

    The position embedding is resampled as in timm. Patches keep their size and stride.

    Raises ValueError like `check_image_size`, and for a network with static attention, which is tied to its
    grid.
    """
    embed = vit.patch_embed
    if tuple(embed.img_size) == size:
        return
    _refuse_static(vit, "input size")
    kernel, stride = embed.proj.kernel_size, embed.proj.stride
    check_image_size(size, kernel, stride)
    if stride == kernel:
        vit.set_input_size(img_size=size)
        return
    grid_before = embed.grid_size
    embed.img_size = size
    embed.grid_size = patch_grid(size, kernel, stride)
    _resample(vit, grid_before)


def _refuse_static(vit: Network, what: str) -> None:
    count = static_blocks_of(tuple(vit.blocks))
    if count:
        rows, columns = vit.patch_embed.grid_size
        raise ValueError(
            f"its first {'block has' if count == 1 else f'{count} blocks have'} static attention, which was "
            f"trained for {rows} x {columns} patches, so no other {what} is possible; for another, start "
            "from weights without static attention"
        )


def _resample(vit: Network, grid_before: tuple[int, int]) -> None:
    """Resample the position embedding to the grid of the patch embedding."""
    embed = vit.patch_embed
    embed.num_patches = embed.grid_size[0] * embed.grid_size[1]
    if vit.pos_embed is not None:
        positions = resample_abs_pos_embed(
            vit.pos_embed.detach(),
            new_size=embed.grid_size,
            old_size=grid_before,
            num_prefix_tokens=0 if vit.no_embed_class else vit.num_prefix_tokens,
        )
        vit.pos_embed = nn.Parameter(positions, requires_grad=vit.pos_embed.requires_grad)


def patch_grid(size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches in an image of ``size`` pixels: (side - kernel) // stride + 1, as for a
    convolution without padding. Pixels left over at the right and at the bottom are ignored."""
    rows, columns = (
        (side - length) // step + 1 for side, length, step in zip(size, kernel, stride, strict=True)
    )
    return rows, columns
