"""The settings of `trimvit ray`: those of `trimvit serve`, and the number and resources of the replicas."""

import math
import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from app.settings.flags import flag
from app.settings.settings import Settings

Proxies = Literal["every-node", "head-node"]


# Settings of `trimvit serve` that have no effect under Ray, and the reasons, which are reported if they are
# set. All others apply to the replicas, to Ray's proxies, or to both.
_OF_RAYS_PROXIES = (
    "connections are handled by Ray's proxies, which have no such limit: set it in the load balancer"
)
REFUSED = {
    "operations_host": "a replica has no port of its own",
    "operations_port": "a replica has no port of its own: use /metrics of the main port",
    "grpc_port": "a replica has no port of its own; for gRPC, use trimvit serve",
    "shared_memory_bytes": "a request may be handled by a replica on another machine",
    "shared_memory_regions": "a request may be handled by a replica on another machine",
    "grpc_calls": "a replica has no port of its own",
    "model_repository": "a model would be loaded by only one of several replicas; name all models with "
    "--model",
    "loadable": "models cannot be loaded while replicas are serving; name all models with --model",
    "max_connections": _OF_RAYS_PROXIES,
    "max_connections_per_client": _OF_RAYS_PROXIES,
    "head_timeout_s": _OF_RAYS_PROXIES,
    "write_timeout_s": _OF_RAYS_PROXIES,
    "slow_retry_s": "Ray replaces a replica whose worker does not start",
}
HONOURED = frozenset({
    "model", "architecture", "patch_stride", "input_size", "labels", "head", "stages", "rows",
    "device", "workers_per_device", "engines", "dtype", "exact", "threads", "streams", "cuda_graphs",
    "max_batch_tokens", "warm_up_s",
    "max_queue_images", "max_queue_s", "agreement_share",
    "host", "port", "http_workers", "api_keys_file", "answer_cache_shared", "max_priority",
    "tls_certificate", "tls_key",
    "trusted_proxies", "root_path", "open_inference_input", "cors_origins", "allowed_hosts",
    "decode_processes", "decode_timeout_s", "max_body_bytes", "max_image_pixels", "truncated_images",
    "max_bodies_bytes", "answer_cache_bytes",
    "body_timeout_s", "keep_alive_s", "max_images_per_request",
    "default_keep_ratio", "default_criterion", "default_reducer", "default_deadline_ms", "model_default",
    "restart_wait_s", "hang_after_s", "load_limit_s", "shutdown_grace_s", "log_format", "log_level",
})  # fmt: skip


class RaySettings(Settings):
    """Serve a vision transformer that prunes its patches as replicas on a Ray cluster."""

    ray_address: str | None = Field(
        None,
        description="Address of the cluster: auto (the cluster of this node) or host:port. Default: start "
        "a cluster on this machine.",
    )
    min_replicas: int = Field(1, ge=1, description="Minimum number of replicas.")
    max_replicas: int = Field(
        1, ge=1, description="Maximum number of replicas. Their number follows the waiting work."
    )
    replica_cpus: float = Field(
        1.0,
        gt=0,
        description="CPUs that a replica reserves. If it computes on a CPU, also the number of its compute "
        "threads, rounded up.",
    )
    replica_gpus: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of a GPU that a replica reserves; with 0.25, four replicas share one. 0: "
        "compute on the CPU.",
    )
    target_work: float = Field(
        16.0,
        gt=0,
        allow_inf_nan=False,
        description="Target of autoscaling: work per replica, waiting or in progress, in unpruned images. "
        "A pruned image counts as its `compute`.",
    )
    scale_up_after_s: float = Field(
        10.0, ge=0, allow_inf_nan=False, description="Time above the target before replicas are added."
    )
    scale_down_after_s: float = Field(
        300.0, ge=0, allow_inf_nan=False, description="Time below the target before replicas are removed."
    )
    proxies: Proxies = Field(
        "every-node",
        description="Nodes that listen for requests: every-node (every node with a replica, for a load "
        "balancer) or head-node.",
    )
    detach: bool = Field(
        False,  # noqa: FBT003
        description="Return when the replicas are ready, and leave them running. `serve shutdown` stops "
        "them.",
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
                f"--max-replicas must be at least --min-replicas; got {self.max_replicas} and "
                f"{self.min_replicas}"
            )
        if self.http_workers != 1 or len(self.devices) != 1:
            raise ValueError(
                "a replica has one HTTP process and one worker: leave out --http-workers and "
                "--workers-per-device, name at most one device, and use more replicas"
            )
        for name in sorted(REFUSED.keys() & self.model_fields_set):
            raise ValueError(f"leave out {flag(name)}, which has no effect here: {REFUSED[name]}")
        if self.port == 0:
            raise ValueError("--port must be given and not be 0: it is the same on every node")
        if self.detach and self.ray_address is None:
            raise ValueError(
                "--detach needs a cluster that keeps running without this process: give its --ray-address"
            )
        return self

    def of_replica(self) -> Settings:
        """The settings of the processes of one replica."""
        shared = self.model_dump(include=set(Settings.model_fields))
        if self.device == "auto" and not self.replica_gpus:
            shared["device"] = "cpu"
        if not self.replica_gpus and not self.threads:
            shared["threads"] = math.ceil(self.replica_cpus)
        return Settings(**shared)
