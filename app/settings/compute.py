"""Settings of devices, processes, threads and batches."""

from pydantic import BaseModel, Field

from app.settings.types import CudaGraphs, Devices
from models.dtypes import DtypeName


class ComputeSettings(BaseModel):
    """Settings of devices, processes, threads and batches."""

    device: Devices = Field(
        "auto",
        description="Device: auto (the first GPU, or the CPU), cpu, or cuda:N. With several, separated by "
        "commas, each gets a worker.",
    )
    workers_per_device: int = Field(
        1, ge=1, le=64, description="Worker processes per device. On a CPU, they share its cores."
    )
    engines: int | None = Field(None, ge=1, le=64, description="Deprecated, use --workers-per-device.")
    dtype: DtypeName = Field(
        "auto",
        description="Data type of the computation: float32, bfloat16, float16, or int8 (on a CPU with AVX2 "
        "or AVX-512; the extra int8 makes it faster on a CPU with bfloat16). auto: bfloat16 if the device "
        "supports it natively, otherwise float32 on a CPU and float16 on a GPU.",
    )
    exact: bool = Field(
        False,  # noqa: FBT003
        description="Uses only timm's operations, so that the logits of batches without pruning are equal "
        "to timm's, bit for bit. Slower in bfloat16 and float16. Not available with int8.",
    )
    threads: int = Field(
        0,
        ge=0,
        description="Compute threads per worker, at most the number of cores. 0: the worker's share of the "
        "cores.",
    )
    streams: int = Field(
        0,
        ge=0,
        description="Batches that a worker computes concurrently. 0: on a CPU one per thread, up to 8; on "
        "a GPU two.",
    )
    cuda_graphs: CudaGraphs = Field(
        "off", description="auto: use CUDA graphs for small batches on a GPU. Not tested on a GPU yet."
    )
    max_batch_tokens: int = Field(
        0,
        ge=0,
        description="Maximum number of tokens in a batch, weighted by cost. 0: 4096 on a CPU, 65536 on a "
        "GPU.",
    )
    warm_up_s: float = Field(
        5.5,
        ge=0,
        description="Maximum time that the first worker spends on timing batches and, in bfloat16 on a CPU, "
        "on preparing kernels before it is ready. With less, the server starts sooner, its first batches are "
        "slower, and its predictions of latency are worse.",
    )
    decode_processes: int = Field(
        3,
        ge=1,
        le=64,
        description="Image decoding processes per HTTP process. A single caller can use all but one of "
        "them, so that its slow images do not delay other callers (which needs at least 2).",
    )

    @property
    def devices(self) -> list[str]:
        """The device of each worker."""
        each = self.engines or self.workers_per_device
        return [device for device in self.device.split(",") for _ in range(each)]
