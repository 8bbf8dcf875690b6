"""Environment variables of the libraries that compute. This module imports nothing, because it is used before
torch is imported."""

from collections.abc import MutableMapping

# Large tensors get memory of their own from the system, in huge pages, and give it back at once.
_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

# No kernel is dropped: small things would move into the room that it leaves. Beside oneDNN, the layer between
# it and PyTorch keeps descriptions of 1,024 kernels for each thread, where those of one batch are enough.
_ONEDNN = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "4096", "LRU_CACHE_CAPACITY": "64"}

# Serving has few shapes (docs/design/0023). A step of training has its own ratio and so kernels that no other
# step needs; 4,096 of them took 14 GB after 345 steps.
_TRAINING = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256"}


# Its handlers around fork() are of no use: what a process starts is a new program.
_GRPC = {"GRPC_ENABLE_FORK_SUPPORT": "false"}

# Of PyTorch's allocator for GPUs, under its names in this PyTorch and before. Batches come in ever new sizes,
# and blocks that cannot grow would be left over from each.
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
