"""The settings of `trimvit ray`: those of `trimvit serve`, and how many replicas with which resources."""

import math
import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from app.settings import Settings

Proxies = Literal["every-node", "head-node"]


class RaySettings(Settings):
    """Serve a vision transformer that prunes its patches as replicas on a Ray cluster."""

    ray_address: str | None = Field(
        None,
        description="The cluster: auto (the one this node is part of) or host:port. Default: start one here.",
    )
    min_replicas: int = Field(1, ge=1, description="Replicas that always run.")
    max_replicas: int = Field(
        1, ge=1, description="Most replicas; above the least, their number follows the work in hand."
    )
    replica_cpus: float = Field(
        1.0, gt=0, description="CPUs that a replica reserves. On a CPU also its compute threads, rounded up."
    )
    replica_gpus: float = Field(
        0.0,
        ge=0,
        le=1,
        description="GPU that a replica reserves; 0.25: four replicas share one. 0: the CPU computes.",
    )
    target_work: float = Field(
        16.0,
        gt=0,
        allow_inf_nan=False,
        description="Work in hand per replica that autoscaling aims at, in unpruned images: an image counts "
        "as its share of compute.",
    )
    scale_up_after_s: float = Field(
        10.0, ge=0, allow_inf_nan=False, description="Time above the target before replicas are added."
    )
    scale_down_after_s: float = Field(
        300.0, ge=0, allow_inf_nan=False, description="Time below the target before replicas are taken away."
    )
    proxies: Proxies = Field(
        "every-node",
        description="Nodes that listen: every-node with a replica, for a load balancer, or head-node.",
    )
    detach: bool = Field(
        False,  # noqa: FBT003
        description="Return once the replicas answer and leave them running; serve shutdown ends them.",
    )

    @field_validator("ray_address")
    @classmethod
    def _is_an_address(cls, given: str | None) -> str | None:
        if given is not None and given != "auto":
            port = re.fullmatch(r"[^/\s]+:(\d{1,5})", given)
            if port is None or not 0 < int(port[1]) < 2**16:
                raise ValueError("must be auto or HOST:PORT")
        return given

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max-replicas must be at least min-replicas, got {self.max_replicas} and {self.min_replicas}"
            )
        if self.http_workers != 1 or self.engines != 1 or "," in self.device:
            raise ValueError(
                "a replica has one HTTP process and one engine: leave out http-workers and engines, name one "
                "device at most, and add replicas"
            )
        if self.operations_port is not None:
            raise ValueError("a replica has no port of its own: leave out operations-port")
        if self.port == 0:
            raise ValueError("port must be named: it is the same on every node")
        if self.detach and self.ray_address is None:
            raise ValueError("detach needs a cluster that goes on without this process: name its ray-address")
        return self

    def of_replica(self) -> Settings:
        """What the HTTP process and the engine of one replica are told."""
        shared = self.model_dump(include=set(Settings.model_fields))
        if self.device == "auto" and not self.replica_gpus:
            shared["device"] = "cpu"
        if not self.replica_gpus and not self.threads:
            shared["threads"] = math.ceil(self.replica_cpus)
        return Settings(**shared)
