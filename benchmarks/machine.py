"""Describe the machine that a result was measured on."""

import os
import platform
import re
from pathlib import Path

import timm
import torch

from models.device import cores

# The processor flags that affect the speed of a network.
_INSTRUCTION_SETS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_bf16", "amx_int8", "asimddp", "i8mm", "bf16", "sve"),
)

# Variables that control how OpenMP threads wait, how many shapes oneDNN caches, and how malloc frees memory.
_ENVIRONMENT = (
    *(
        "OMP_WAIT_POLICY",
        "GOMP_SPINCOUNT",
        "OMP_NUM_THREADS",
        "KMP_BLOCKTIME",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
    ),
    *("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"),
)


def describe(device: str = "cpu") -> dict[str, object]:
    """Return the machine, versions and settings that affect timings, for the JSON of a result. Includes the
    GPU if ``device`` is one.

    ``load_average`` is that of the last minute. On an idle machine, it is about what the benchmark itself
    uses.
    """
    flags = _cpuinfo("flags|Features").split()
    return {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        "load_average": round(os.getloadavg()[0], 2),
        **({} if device == "cpu" else {"gpu": _gpu(device)}),
    }


def _gpu(device: str) -> dict[str, object]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _cpuinfo(key: str) -> str:
    """Return the value of the first /proc/cpuinfo line with this key, or an empty string without one."""
    info = Path("/proc/cpuinfo")
    found = re.search(rf"^(?:{key})\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else ""
