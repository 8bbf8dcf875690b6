"""The Ray Serve application, as `trimvit ray` and `serve deploy` run it."""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import LoggingConfig

from app.ray.autoscaling import replicas_for_work
from app.ray.replica import Replica
from app.ray.settings import RaySettings

QUIET = LoggingConfig(enable_access_log=False)  # no line per request, as in `trimvit serve`
_STARTS_TRIED = 3
_EVERYWHERE = "0.0.0.0"  # noqa: S104
_LOOK_BACK_S = 15.0  # longer than the ten seconds between the replicas' reports


def application(settings: RaySettings) -> Application:
    """The replicas for these settings."""
    autoscaling = AutoscalingConfig(
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        target_ongoing_requests=settings.target_work,  # our policy uses work instead of requests
        upscale_delay_s=settings.scale_up_after_s,
        downscale_delay_s=settings.scale_down_after_s,
        look_back_period_s=max(_LOOK_BACK_S, settings.scale_up_after_s),
        policy=AutoscalingPolicy(policy_function=replicas_for_work),
    )
    deployment = serve.deployment(
        name="trimvit",
        ray_actor_options={"num_cpus": settings.replica_cpus, "num_gpus": settings.replica_gpus},
        # Requests are passed on to the replica's dispatcher, which handles deadlines, cancelled requests and
        # status 429. The proxy's queue does not.
        max_ongoing_requests=settings.max_queue_images,
        graceful_shutdown_timeout_s=settings.shutdown_grace_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5.0,
        max_constructor_retry_count=_STARTS_TRIED,
        autoscaling_config=autoscaling,
        logging_config=QUIET,
    )
    return deployment(serve.ingress()(Replica)).bind(settings.of_replica())


def build(args: dict[str, Any]) -> Application:
    """For a Serve configuration file: its ``args`` are the flags of `trimvit ray`, with underscores. Where
    Ray listens is set elsewhere in the file."""
    return application(RaySettings(**{"host": _EVERYWHERE, **args}))
