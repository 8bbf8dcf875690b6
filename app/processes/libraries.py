"""Environment variables of the libraries that compute. This module imports nothing, because it is used before
torch is imported."""

from collections.abc import MutableMapping

# Large tensors are allocated separately, in huge pages, and returned to the system immediately.
_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

# oneDNN drops no kernels, because small allocations would fragment the memory that they leave. The layer
# between PyTorch and oneDNN also caches descriptions of 1,024 kernels per thread by default, although those
# of one batch are enough.
_ONEDNN = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "4096", "LRU_CACHE_CAPACITY": "64"}

# Serving uses few shapes (docs/design/0023). In training, each step has its own ratio and so kernels that no
# other step needs; 4,096 of them took 14 GB after 345 steps.
_TRAINING = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256"}


# gRPC's fork handlers are not needed, because new processes run new programs.
_GRPC = {"GRPC_ENABLE_FORK_SUPPORT": "false"}

# Settings of PyTorch's GPU allocator, under the new and the old name. Batch sizes vary, so memory blocks that
# cannot grow would be left over.
_CUDA_MEMORY = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def tune_libraries(environment: MutableMapping[str, str], *, trains: bool = False) -> None:
    """Set defaults for variables that libraries read when a process starts or torch is imported. Existing
    values stay.

    They say how long an idle OpenMP thread spins before it sleeps (docs/design/0003), and how glibc's malloc
    uses memory in a worker (docs/design/0023): one arena for all threads, instead of up to eight per core,
    and nothing large in it, because what oneDNN keeps would be scattered among what comes and goes with a
    batch.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "2000")
    if not any(name in environment for name in _CUDA_MEMORY):
        environment[_CUDA_MEMORY[0]] = "expandable_segments:True"
    for name, value in (_MALLOC | _ONEDNN | (_TRAINING if trains else {}) | _GRPC).items():
        environment.setdefault(name, value)
