"""Whether an error means that the device is temporarily out of memory, or lost.

Errors are recognized by name and number, because this module does not import torch.
"""

# CUDA runtime errors (cudaError_t in driver_types.h).
_NO_MEMORY = 2
# After these errors, all later calls of the process fail. Only a new process can use the GPU.
_LOST = {
    214: "ECC uncorrectable",
    220: "NVLink uncorrectable",
    226: "contained",
    700: "illegal address",
    702: "launch timeout",
    710: "device-side assert",
    714: "hardware stack error",
    715: "illegal instruction",
    716: "misaligned address",
    717: "invalid address space",
    718: "invalid program counter",
    719: "launch failure",
    721: "tensor memory leak",
    999: "unknown",
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left.

    These are torch.OutOfMemoryError of PyTorch's allocator on a device, CUDA's own error if something else
    allocated memory (pinned memory, a library's workspace), and the RuntimeError of PyTorch's CPU allocator
    (c10/core/impl/alloc_cpu.cpp).
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if not isinstance(error, RuntimeError):
        return False
    said = str(error)
    return _number(error) == _NO_MEMORY or "DefaultCPUAllocator" in said or "_STATUS_ALLOC_FAILED" in said


def is_lost(error: BaseException) -> bool:
    """Whether the GPU is lost for this process, according to PyTorch's error for CUDA:
    torch.AcceleratorError."""
    return _number(error) in _LOST


def _number(error: BaseException) -> int | None:
    if type(error).__name__ != "AcceleratorError":
        return None
    return getattr(error, "error_code", None)
