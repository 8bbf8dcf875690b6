"""Defaults for what libraries read of the environment."""

import pytest

from app.processes.libraries import tune_libraries

MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "4194304",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "4096",
    "LRU_CACHE_CAPACITY": "64",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "GRPC_ENABLE_FORK_SUPPORT": "false",
}


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_what_is_said_of_a_gpus_memory_stays(name: str) -> None:
    """Under its new name and its old one, which PyTorch reads where the new one is not there."""
    environment = {name: "max_split_size_mb:64"}
    tune_libraries(environment)
    others = {key: value for key, value in environment.items() if "ALLOC_CONF" in key}
    assert others == {name: "max_split_size_mb:64"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, {"GOMP_SPINCOUNT": "2000", **MEMORY}),
        (
            {"GOMP_SPINCOUNT": "7", "MALLOC_ARENA_MAX": "8"},
            {**MEMORY, "GOMP_SPINCOUNT": "7", "MALLOC_ARENA_MAX": "8"},
        ),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE", **MEMORY}),
    ],
    ids=["nothing said", "some said", "threads are to sleep"],
)
def test_what_was_said_stays(given: dict[str, str], told: dict[str, str]) -> None:
    """Defaults go where nobody has chosen."""
    tune_libraries(given)
    assert given == told


def test_training_keeps_the_kernels_of_a_step_or_two() -> None:
    """Each step has a ratio of its own: where all kernels stay, they fill the memory."""
    environment: dict[str, str] = {}
    tune_libraries(environment, trains=True)
    assert environment == {"GOMP_SPINCOUNT": "2000", **MEMORY, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256"}
