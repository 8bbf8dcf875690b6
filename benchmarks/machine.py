"""What a result was measured on."""

import os
import platform
import re
from pathlib import Path

import timm
import torch

from models.device import cores

# Of the processor's many flags, those that decide how fast a network runs.
_INSTRUCTION_SETS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_bf16", "amx_int8", "asimddp", "i8mm", "bf16", "sve"),
)

# They decide how OpenMP's threads wait, how many shapes oneDNN remembers, and what malloc gives back.
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
    """The machine, the versions and the settings that a timing hangs on, for the JSON of a result; with the
    GPU where ``device`` is one.

    ``load_average`` is that of the last minute: on a quiet machine about what the benchmark itself uses.
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
    """The first line of that key; empty where there is no /proc/cpuinfo, or no such line."""
    info = Path("/proc/cpuinfo")
    found = re.search(rf"^(?:{key})\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else ""
