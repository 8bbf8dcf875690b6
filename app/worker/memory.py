"""Which errors mean that memory is short."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left.

    Known by name, since this module has no torch: torch.OutOfMemoryError of the devices, and the RuntimeError
    of PyTorch's CPU allocator (c10/core/impl/alloc_cpu.cpp).
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
