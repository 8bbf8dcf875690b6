"""What computes: devices, processes, threads, batches."""

from pydantic import BaseModel, Field

from app.settings.types import CudaGraphs, Devices
from models.dtypes import DtypeName


class ComputeSettings(BaseModel):
    """What computes: devices, processes, threads, batches."""

    device: Devices = Field(
        "auto",
        description="auto (the first GPU, else the CPU), cpu, cuda:N; separated by commas, one worker each.",
    )
    workers_per_device: int = Field(
        1, ge=1, le=64, description="Worker processes for each device named; on a CPU they share its cores."
    )
    engines: int | None = Field(
        None, ge=1, le=64, description="Deprecated: the former name of --workers-per-device."
    )
    dtype: DtypeName = Field(
        "auto",
        description="auto: bfloat16 where the device computes in it, else float32 on a CPU and float16 on a "
        "GPU. Or float32, bfloat16, float16; int8 on a CPU with AVX2 or AVX-512.",
    )
    exact: bool = Field(
        False,  # noqa: FBT003
        description="Every operation as timm has it: batches in which nothing is pruned then have the bits "
        "of timm's logits. Slower where the CPU or GPU computes in bfloat16 or float16. Not for int8.",
    )
    threads: int = Field(
        0, ge=0, description="Compute threads of a worker. 0: its share of the cores; never more than cores."
    )
    streams: int = Field(
        0,
        ge=0,
        description="Batches a worker computes at once. 0: one per thread, to 8, on a CPU; two on a GPU.",
    )
    cuda_graphs: CudaGraphs = Field(
        "off", description="auto: small batches as CUDA graphs on a GPU. Not tried on one yet."
    )
    max_batch_tokens: int = Field(
        0, ge=0, description="Tokens of a batch, weighted by their cost. 0: 4096 on a CPU, 65536 on a GPU."
    )
    decode_processes: int = Field(
        3,
        ge=1,
        le=64,
        description="Processes that decode images, per HTTP process. One caller gets all but one of them, so "
        "that its slow images never hold up others; with 1 they do.",
    )

    @property
    def devices(self) -> list[str]:
        """The device of each worker."""
        each = self.engines or self.workers_per_device
        return [device for device in self.device.split(",") for _ in range(each)]
