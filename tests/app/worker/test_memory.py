"""Which errors mean that memory is short."""

import pytest
import torch

from app.worker.memory import is_out_of_memory


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("DefaultCPUAllocator: not enough memory"), False),
    ],
    ids=str,
)
def test_only_a_lack_of_memory_is_taken_for_one(error: Exception, is_so: bool) -> None:
    """Anything else is a fault of an image or of the device."""
    assert is_out_of_memory(error) == is_so


def test_pytorch_says_so_in_these_words() -> None:
    """The host's allocator raises what is recognised above."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
