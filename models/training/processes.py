"""The processes of a training run: one, or several started by `torchrun`."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")

_LONGEST_WAIT_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Processes:
    """This process: its ``rank`` among ``count`` processes, and its ``local`` rank on this machine."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes, logs and validates."""
        return self.rank == 0

    def device(self, wanted: str) -> str:
        """Return the device of this process. With several processes on GPUs, each has its own."""
        if self.count > 1 and wanted.startswith("cuda"):
            return f"cuda:{self.local}"
        return wanted

    def gathered(self, own: Mapping[str, T]) -> dict[str, T]:
        """Collect the entries of all processes."""
        if self.count == 1:
            return dict(own)
        parts: list[dict[str, T]] = [{} for _ in range(self.count)]
        distributed.all_gather_object(parts, dict(own))
        return {key: value for part in parts for key, value in part.items()}

    def wait(self) -> None:
        """Wait until all processes reach this point."""
        if self.count > 1:
            distributed.barrier()


def of_environment(environment: Mapping[str, str] = os.environ) -> Processes:
    """Read the ranks from the variables that `torchrun` sets. Raises ValueError if they are incomplete,
    because clusters may set WORLD_SIZE alone."""
    if environment.get("WORLD_SIZE", "1").strip() in ("", "1"):
        return Processes()
    rank, count, local = (environment.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if not (rank.isdecimal() and count.isdecimal() and local.isdecimal() and int(rank) < int(count)):
        raise ValueError(
            f"the environment has WORLD_SIZE={count!r}, RANK={rank!r} and LOCAL_RANK={local!r}, which does "
            "not name one of several processes; start them with torchrun, or unset WORLD_SIZE to train in "
            "one process"
        )
    return Processes(int(rank), int(count), int(local))


@contextmanager
def joined(processes: Processes, device: str) -> Iterator[None]:
    """Context in which the processes can communicate."""
    if processes.count == 1:
        yield
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    # The others wait while the leading process validates. (If a process dies, torchrun ends the others.)
    distributed.init_process_group(
        "nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(seconds=_LONGEST_WAIT_S)
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()
