"""What a GPU itself says: of errors, of constants, of what replaces cuDNN."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from app.worker.device_errors import is_lost, is_out_of_memory
from models.device import choose_dtype, use_gpu
from models.normalise import in_one_pass, levels_of, normalise
from models.patch_product import PatchProduct
from models.ragged import on_device
from tests.models.cuda_batches import SPEC

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.gpu

# An assertion that fails on the device: the process has lost its GPU, so it is another one.
LOSES_ITS_GPU = """
import torch
from app.worker.device_errors import is_lost, is_out_of_memory

try:
    torch.zeros(3, device="cuda")[torch.tensor([7], device="cuda")]
    torch.cuda.synchronize()
except RuntimeError as error:
    first = error
try:
    torch.ones(3, device="cuda").sum().item()
except RuntimeError as error:
    later = error
print(is_lost(first), is_lost(later), is_out_of_memory(first))
"""


def test_a_lost_gpu_is_known_by_its_error() -> None:
    """By the first, and by that of every later call."""
    ran = subprocess.run(
        [sys.executable, "-c", LOSES_ITS_GPU], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.stdout.strip() == "True True False", ran.stderr[-2000:]


def test_a_lack_of_memory_is_known_and_passes() -> None:
    """PyTorch's allocator says so, and the GPU computes on."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46, dtype=torch.uint8, device="cuda")
    assert is_out_of_memory(caught.value)
    assert not is_lost(caught.value)
    assert torch.ones(3, device="cuda").sum().item() == 3


def test_a_thread_that_uses_a_gpu_does_without_cudnns_attention() -> None:
    """And the GPU's own dtype is one that it computes in."""
    was = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        use_gpu("cuda:0")
        assert torch.cuda.current_device() == 0
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was)
    dtype = choose_dtype("cuda:0")
    assert (
        torch.ones(8, 8, dtype=dtype, device="cuda").mm(torch.ones(8, 8, dtype=dtype, device="cuda")).sum()
        == 512
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pixels_are_normalised_as_on_the_cpu(dtype: torch.dtype) -> None:
    """In one operation, to rounding."""
    pixels = torch.randint(0, 256, (5, 20, 28, 3), dtype=torch.uint8)
    device = torch.device("cuda:0")
    got = in_one_pass(on_device(pixels, device), dtype, levels_of(SPEC, device))
    assert got.is_contiguous()
    torch.testing.assert_close(got.cpu(), normalise(pixels, SPEC, dtype))


def test_patches_are_embedded_as_by_the_convolution(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """To rounding."""
    embed = make_vit().patch_embed.to("cuda")
    pixels = make_pixels(3).to("cuda")
    with torch.inference_mode():
        # A convolution rounds its inputs to ten bits (TF32), a product by default does not.
        torch.testing.assert_close(PatchProduct(embed.proj)(pixels), embed(pixels), rtol=0.02, atol=0.02)
