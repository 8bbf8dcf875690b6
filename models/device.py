"""Which device, dtype and how many threads to compute with, by looking at the machine."""

import os

import torch

from models.dtypes import DtypeName

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}


def choose_device(wanted: str) -> str:
    """``auto``: the first GPU where PyTorch sees one, else the CPU. Raises OSError for a missing GPU."""
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return wanted
    device = wanted if ":" in wanted else f"{wanted}:0"
    if int(device.partition(":")[2]) >= torch.cuda.device_count():
        raise OSError(f"there is no device {device}; PyTorch sees {torch.cuda.device_count()} GPUs")
    return device


def choose_dtype(device: str, wanted: DtypeName = "auto") -> torch.dtype:
    """``auto``: bfloat16 where the device computes in it natively (1.9 times float32 on such a CPU), else
    float16 on a GPU and float32 on a CPU. Raises ValueError for int8 where it cannot be had."""
    if wanted == "int8" and not (device == "cpu" and _cpu_has_int8()):
        raise ValueError(
            "int8 needs a CPU with AVX-512 VNNI, and this is "
            + ("a CPU without" if device == "cpu" else device)
            + "; allowed here: auto, float32, bfloat16, float16"
        )
    if wanted != "auto":
        return _DTYPES[wanted]
    if device == "cpu":
        return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def input_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    """What images come in, and all layers compute in that are not quantised: ``dtype`` itself, but for int8
    the device's own."""
    return choose_dtype(device) if dtype == torch.int8 else dtype


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_has_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _cpu_has_int8() -> bool:
    """Without VNNI, oneDNN adds pairs of products up in 16 bits, which saturate: quick, and wrong."""
    return bool(torch.cpu._is_vnni_supported() and torch.backends.mkldnn.is_available())
