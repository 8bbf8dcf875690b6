"""The configuration file for a Ray cluster."""

from pathlib import Path

import pytest
import yaml

from app.ray.settings import RaySettings

CONFIG = Path(__file__).parents[2] / "deploy" / "ray" / "serve.yaml"


def test_serve_accepts_the_file_and_trimvit_its_arguments() -> None:
    """`serve deploy` would take it, and its args are settings of `trimvit ray`."""
    schema = pytest.importorskip("ray.serve.schema", reason="Ray is not installed (extra ray)")
    config = schema.ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    (application,) = config.applications
    assert RaySettings(**application.args).max_replicas == 8


def test_the_application_it_names_is_built_with_them() -> None:
    """The import path leads to a builder that passes resources, bounds and the policy on."""
    pytest.importorskip("ray.serve", reason="Ray is not installed (extra ray)")
    from app.ray.application import build

    (application,) = yaml.safe_load(CONFIG.read_text())["applications"]
    assert application["import_path"] == f"{build.__module__}:{build.__name__}"
    deployment = build(application["args"])._bound_deployment
    assert deployment.init_args[0].host == "0.0.0.0", "public names of the nodes are answered"
    assert deployment.ray_actor_options["num_gpus"] == 1
    assert deployment.ray_actor_options["num_cpus"] == 4
    autoscaling = deployment._deployment_config.autoscaling_config
    assert (autoscaling.min_replicas, autoscaling.max_replicas) == (2, 8)
    assert autoscaling.policy.policy_function == "app.ray.autoscaling.replicas_for_work"
