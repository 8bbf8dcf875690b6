"""docker-compose.yml: it holds together, and the server in it is locked in."""

import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from app.security.keys import KEYS_VARIABLE
from app.settings.settings import Settings

PORT = Settings.model_fields["port"].default
SHUTDOWN_GRACE_S = Settings.model_fields["shutdown_grace_s"].default


def bind_mounts(service: dict[str, Any]) -> list[tuple[str, PurePosixPath, str]]:
    """The (path in the repository, path in the container, options) of a service."""
    split = [mount.split(":") for mount in service.get("volumes", [])]
    return [
        (source, PurePosixPath(target), ",".join(options))
        for source, target, *options in split
        if source.startswith(".")
    ]


def in_repository(service: dict[str, Any], path: str, repository: Path) -> Path:
    """The file of the repository that the service sees at ``path``."""
    for source, target, _ in bind_mounts(service):
        if PurePosixPath(path).is_relative_to(target):
            return repository / source / PurePosixPath(path).relative_to(target)
    raise AssertionError(f"{path} is not mounted")


def seconds(duration: str) -> float:
    """A duration of whole seconds as Compose and Prometheus write it."""
    return float(duration.removesuffix("s"))


def test_services(compose: dict[str, Any]) -> None:
    """The server comes with Prometheus and Grafana, and nothing else."""
    assert set(compose["services"]) == {"trimvit", "prometheus", "grafana"}


def test_server_is_locked_in(compose: dict[str, Any]) -> None:
    """The server keeps the image's user, writes to /tmp only, has no capability and cannot gain any."""
    server = compose["services"]["trimvit"]
    assert "user" not in server
    assert "privileged" not in server
    assert server["read_only"] is True
    assert [mount.split(":")[0] for mount in server["tmpfs"]] == ["/tmp"]
    assert server["cap_drop"] == ["ALL"]
    assert server["security_opt"] == ["no-new-privileges:true"]


def test_every_service_is_without_capabilities(compose: dict[str, Any]) -> None:
    """No service has a capability or can gain one."""
    for service in compose["services"].values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_only_this_machine_reaches_the_ports(compose: dict[str, Any]) -> None:
    """Each service publishes its ports, on the loopback address only: the server that of gRPC, too, wherever
    the setting puts it."""
    grpc = "${TRIMVIT_GRPC_PORT:-8001}"
    published = {name: service["ports"] for name, service in compose["services"].items()}
    assert published == {
        "trimvit": [f"127.0.0.1:{PORT}:{PORT}", f"127.0.0.1:{grpc}:{grpc}"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    """Images that are not built here have a full version as their tag."""
    images = [service["image"] for service in compose["services"].values() if "build" not in service]
    assert len(images) == 2
    for image in images:
        version = image.rpartition(":")[2].removeprefix("v")
        assert len(version.split(".")) == 3, image


def test_stopping_waits_for_the_server(compose: dict[str, Any]) -> None:
    """Docker leaves the server more time to stop than the server leaves its requests."""
    server = compose["services"]["trimvit"]
    assert "TRIMVIT_SHUTDOWN_GRACE_S" not in server["environment"]
    assert seconds(server["stop_grace_period"]) > SHUTDOWN_GRACE_S


def test_settings_can_be_given_from_outside(compose: dict[str, Any], repository: Path) -> None:
    """Each setting can be set in the shell, but those of an address or a file, which the container decides,
    and the grace time, which has to fit the file's own. So can what others read: the SDK of traces, as the
    documentation names its variables, and the hub's client."""
    inside = {"host", "port", "operations_host", "operations_port", "shutdown_grace_s"}
    inside |= {"labels", "head", "api_keys_file", "tls_certificate", "tls_key"}
    given = compose["services"]["trimvit"]["environment"]
    settings = [f"TRIMVIT_{name.upper()}" for name in Settings.model_fields if name not in inside]
    documented = set(re.findall(r"OTEL_[A-Z_]+", (repository / "docs/monitoring.md").read_text()))
    others = documented | {"OTEL_EXPORTER_OTLP_HEADERS", "OTEL_TRACES_SAMPLER_ARG"}
    others |= {"HF_TOKEN", "HF_ENDPOINT"}
    assert set(given) == {*settings, KEYS_VARIABLE, *others}
    assert set(given.values()) == {None}
    assert inside <= set(Settings.model_fields)


def test_weights_are_kept(compose: dict[str, Any], instructions: list[tuple[str, str]]) -> None:
    """What the hub's cache, as the image names it, lies on outlives the container."""
    environment = [rest for word, rest in instructions if word == "ENV"][-1]
    [mount] = compose["services"]["trimvit"]["volumes"]
    volume, _, path = mount.partition(":")
    assert f"HF_HOME={path}" in environment.split()
    assert volume in compose["volumes"]


def test_mounts_exist(compose: dict[str, Any], repository: Path) -> None:
    """Whatever is mounted from the repository is there, and mounted read-only."""
    for name, service in compose["services"].items():
        for source, _, options in bind_mounts(service):
            assert (repository / source).is_dir(), (name, source)
            assert options == "ro", (name, source)


def test_named_volumes_are_declared(compose: dict[str, Any]) -> None:
    """Each volume is declared, and each declared one is used."""
    used = {
        mount.split(":")[0]
        for service in compose["services"].values()
        for mount in service.get("volumes", [])
        if not mount.startswith(".")
    }
    assert used == set(compose["volumes"])


def test_whoever_is_waited_for_has_a_health_check(
    compose: dict[str, Any], instructions: list[tuple[str, str]]
) -> None:
    """A service that must be healthy before another starts says whether it is."""
    in_image = {"trimvit"} if any(word == "HEALTHCHECK" for word, _ in instructions) else set()
    for service in compose["services"].values():
        for name, dependency in service.get("depends_on", {}).items():
            if dependency["condition"] == "service_healthy":
                assert name in in_image or "healthcheck" in compose["services"][name]


def test_prometheus_scrapes_the_server(compose: dict[str, Any], repository: Path) -> None:
    """Prometheus is started on the repository's configuration, whose target is the server's port."""
    prometheus = compose["services"]["prometheus"]
    [path] = [word.partition("=")[2] for word in prometheus["command"] if word.startswith("--config.file=")]
    configuration = in_repository(prometheus, path, repository)
    [job] = yaml.safe_load(configuration.read_text())["scrape_configs"]
    assert job["job_name"] == "trimvit"
    assert job["static_configs"] == [{"targets": [f"trimvit:{PORT}"]}]


def test_grafana_finds_its_data_and_dashboard(compose: dict[str, Any], repository: Path) -> None:
    """Grafana is given Prometheus as its data source and the repository's dashboard, also as its home."""
    grafana = compose["services"]["grafana"]
    provisioning = "/etc/grafana/provisioning"
    [source] = yaml.safe_load(
        in_repository(grafana, f"{provisioning}/datasources/prometheus.yml", repository).read_text()
    )["datasources"]
    url = urlsplit(source["url"])
    assert url.hostname in compose["services"]
    assert f"127.0.0.1:{url.port}:{url.port}" in compose["services"][url.hostname]["ports"]

    [provider] = yaml.safe_load(
        in_repository(grafana, f"{provisioning}/dashboards/trimvit.yml", repository).read_text()
    )["providers"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert PurePosixPath(home).is_relative_to(provider["options"]["path"])
    assert in_repository(grafana, home, repository).is_file()


def test_grafana_knows_the_scrape_interval(repository: Path) -> None:
    """Grafana's windows are chosen by the interval that Prometheus really scrapes at."""
    prometheus = yaml.safe_load((repository / "deploy/prometheus/prometheus.yml").read_text())
    source = repository / "deploy/grafana/provisioning/datasources/prometheus.yml"
    [provisioned] = yaml.safe_load(source.read_text())["datasources"]
    assert provisioned["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]


def test_grafana_may_be_looked_at_but_not_logged_into(compose: dict[str, Any]) -> None:
    """Grafana shows everyone everything, and has no administrator with a well-known password."""
    environment = compose["services"]["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"


def test_gpu_override_only_adds_the_gpu(compose: dict[str, Any], repository: Path) -> None:
    """The override changes the server only, and only gives it a GPU and says to use it."""
    override = yaml.safe_load((repository / "deploy/compose.gpu.yml").read_text())
    assert set(override["services"]) == {"trimvit"}
    server = override["services"]["trimvit"]
    assert set(server) == {"environment", "deploy"}
    assert set(server["environment"]) == {"TRIMVIT_DEVICE"}
