"""Chooses the device, the dtype and the number of threads for this machine."""

import re

import torch

from models.cores import cores as cores
from models.dtypes import DtypeName

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}


def choose_device(wanted: str) -> str:
    """Choose the device. ``auto``: the first GPU if PyTorch finds one, otherwise the CPU.

    Raises OSError for a missing GPU, and ValueError for an unsupported device.
    """
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return wanted
    if not re.fullmatch(r"cuda(:[0-9]+)?", wanted):
        raise ValueError(f"the device {wanted!r} is not supported; allowed are auto, cpu, cuda and cuda:N")
    device = wanted if ":" in wanted else f"{wanted}:0"
    if int(device.partition(":")[2]) >= torch.cuda.device_count():
        raise OSError(f"the device {device} does not exist; PyTorch finds {torch.cuda.device_count()} GPUs")
    return device


def choose_dtype(device: str, wanted: DtypeName = "auto") -> torch.dtype:
    """Choose the dtype.

    ``auto``: bfloat16 if the device supports it natively (1.9 times as fast as float32 on such a CPU),
    otherwise float16 on a GPU and float32 on a CPU. Raises ValueError for int8 if it is not available.
    """
    if wanted == "int8" and not (device == "cpu" and cpu_has_int8()):
        raise ValueError(
            "int8 needs a CPU with AVX2, but this is "
            + ("a CPU without" if device == "cpu" else device)
            + "; allowed here: auto, float32, bfloat16, float16"
        )
    if wanted != "auto":
        return _DTYPES[wanted]
    if device == "cpu":
        return torch.bfloat16 if cpu_has_bfloat16() else torch.float32
    return torch.bfloat16 if gpu_has_bfloat16(device) else torch.float16


def input_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the images and of all layers that are not quantised: ``dtype`` itself, or for int8 the
    default of the device."""
    return choose_dtype(device) if dtype == torch.int8 else dtype


def int8_is_faster(device: str, dtype: torch.dtype) -> bool:
    """Whether int8 would be much faster on this device than ``dtype`` (docs/design/0013)."""
    return device == "cpu" and dtype == torch.float32 and cpu_has_int8()


def gpu_has_bfloat16(device: str) -> bool:
    """Whether the GPU ``device`` supports bfloat16 natively. (PyTorch's own check is for the current GPU.)"""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def use_gpu(device: str) -> None:
    """Make ``device`` the calling thread's GPU. Call it in every thread that computes on it.

    Otherwise pinned memory would belong to the first GPU, which would then hold memory for a worker of
    another one. It also disables cuDNN's attention, which builds a plan for every new shape (23 to 37 ms,
    pytorch issue 162073): pruned batches have new shapes all the time.
    """
    torch.cuda.set_device(device)
    torch.backends.cuda.enable_cudnn_sdp(False)  # noqa: FBT003


def cpu_has_bfloat16() -> bool:
    """Whether the CPU supports bfloat16 natively. Others convert each number and compute in float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def cpu_has_amx() -> bool:
    """Whether the CPU has AMX, which multiplies tiles of matrices."""
    return bool(torch.cpu._is_amx_tile_supported())


def cpu_has_int8() -> bool:
    """Whether int8 is supported: it needs AVX2 (32 bytes at once), with or without VNNI, and oneDNN
    (models.linear.int8)."""
    return bool(torch.cpu._is_avx2_supported() and torch.backends.mkldnn.is_available())


def cpu_has_vnni() -> bool:
    """Whether the CPU has VNNI, which accumulates products of bytes in 32 bits. Other CPUs first add pairs of
    products in 16 bits."""
    return bool(torch.cpu._is_vnni_supported())
