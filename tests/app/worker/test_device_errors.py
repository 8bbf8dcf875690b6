"""Which errors mean that memory is short, and which that the GPU is lost."""

import pytest
import torch

from app.worker.device_errors import is_lost, is_out_of_memory
from tests.app.worker.cuda_errors import cuda_error


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
        (cuda_error(2, "out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (cuda_error(700, "an illegal memory access was encountered"), False),
        (ValueError("DefaultCPUAllocator: not enough memory"), False),
    ],
    ids=str,
)
def test_only_a_lack_of_memory_is_taken_for_one(error: Exception, is_so: bool) -> None:
    """Anything else is a fault of an image or of the device."""
    assert is_out_of_memory(error) == is_so


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (cuda_error(700, "an illegal memory access was encountered"), True),
        (cuda_error(710, "device-side assert triggered"), True),
        (cuda_error(214, "uncorrectable ECC error encountered"), True),
        (cuda_error(719, "unspecified launch failure"), True),
        (cuda_error(2, "out of memory"), False),
        (cuda_error(1, "invalid argument"), False),
        (cuda_error(900, "operation not permitted when stream is capturing"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), False),
        (RuntimeError("shape mismatch"), False),
    ],
    ids=str,
)
def test_a_gpu_is_lost_by_errors_that_stay(error: Exception, is_so: bool) -> None:
    """Others leave it as it was: what comes next may succeed."""
    assert is_lost(error) == is_so


def test_pytorch_says_so_in_these_words() -> None:
    """The host's allocator raises what is recognised above."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
