"""What PyTorch raises of a GPU."""

import torch


def cuda_error(number: int, words: str) -> RuntimeError:
    """An error of CUDA's runtime, as c10/cuda/CUDAException.cpp words it and torch/csrc/Exceptions.cpp
    numbers it."""
    error = torch.AcceleratorError(
        f"CUDA error: {words}\nCUDA kernel errors might be asynchronously reported at some other API call, "
        "so the stacktrace below might be incorrect."
    )
    error.error_code = number  # type: ignore[attr-defined]
    return error
