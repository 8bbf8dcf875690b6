"""The Kubernetes manifests: valid by their schemas, and in step with image, settings, routes and metrics."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, cast

import kubernetes_validate
import pytest
import yaml

from app.http.health import Health
from app.http.routes.operations import operations_router
from app.settings.settings import Settings
from tests.deploy.promql import exposed

Object = dict[str, Any]
Objects = list[Object]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kubernetes"

# From the first with preStop's `sleep` and PodDisruptionBudget's unhealthyPodEvictionPolicy by default.
VERSIONS = ["1.30", kubernetes_validate.latest_version()]
# Objects of operators, which Kubernetes' own schemas do not know.
OTHERS = {"ServiceMonitor", "PrometheusRule"}
LABEL = {"app.kubernetes.io/name": "trimvit"}


def read(path: Path) -> Objects:
    """The objects of a file."""
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


@cache
def rendered(folder: Path) -> Objects:
    """What is applied of a kustomization, as kustomize itself composes it."""
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(command[0]):
            ended = subprocess.run([*command, folder], capture_output=True, text=True)
            assert ended.returncode == 0, ended.stderr
            return list(yaml.safe_load_all(ended.stdout))
    pytest.skip("neither kustomize nor kubectl is installed")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kustomization of one's own outside of the repository: the base with all components."""
    folder = tmp_path_factory.mktemp("everything")
    (folder / "deploy").symlink_to(ROOT / "deploy")
    components = sorted(path.name for path in (FOLDER / "components").iterdir())
    mine = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["deploy/kubernetes/base"],
        "components": [f"deploy/kubernetes/components/{name}" for name in components],
        "images": [{"name": "trimvit", "newName": "registry.example/trimvit", "newTag": "0.1.0"}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(mine))
    return folder


def composed(name: str, everything: Path) -> Objects:
    """All that is applied of one of the kustomizations."""
    if name == "everything":
        return rendered(everything)
    if name == "base":  # plain files, which need no kustomize
        names = read(FOLDER / "base/kustomization.yaml")[0]["resources"]
        return [found for name in names for found in read(FOLDER / "base" / name)]
    return rendered(FOLDER / name)


@pytest.fixture(scope="module", params=["base", "overlays/cpu", "overlays/gpu", "everything"])
def objects(request: pytest.FixtureRequest, everything: Path) -> Objects:
    """All that is applied, of each kustomization."""
    return composed(request.param, everything)


def only(objects: Objects, kind: str, name: str = "trimvit") -> Object:
    """The one object of that kind and name."""
    [found] = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def pod(objects: Objects) -> Object:
    """The pod's template."""
    return only(objects, "Deployment")["spec"]["template"]


def container(objects: Objects) -> Object:
    """The pod's one container."""
    [found] = pod(objects)["spec"]["containers"]
    return found


def environment(objects: Objects) -> dict[str, str]:
    """The container's environment; what comes from its resources is a whole number of them."""
    limits = container(objects)["resources"]["limits"]
    return {
        variable["name"]: variable["value"]
        if "value" in variable
        else str(int(limits[variable["valueFrom"]["resourceFieldRef"]["resource"].removeprefix("limits.")]))
        for variable in container(objects)["env"]
    }


def ports(objects: Objects) -> dict[str, int]:
    """The container's ports by name."""
    return {port["name"]: port["containerPort"] for port in container(objects)["ports"]}


def operations_paths() -> set[str]:
    """What the operations port answers."""
    router = operations_router(cast("Health", None), with_metrics=True)
    return {route.path for route in router.routes}  # type: ignore[attr-defined]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["base", "everything"])
def test_objects_are_valid(name: str, version: str, everything: Path) -> None:
    """Each object has the members that its schema knows, and no others."""
    checked = [found for found in composed(name, everything) if found["kind"] not in OTHERS]
    assert checked
    for found in checked:
        kubernetes_validate.validate(found, version, strict=True)


def test_a_wrong_member_is_found() -> None:
    """The schema check would find a slip of the pen."""
    [budget] = read(FOLDER / "base/disruption-budget.yaml")
    budget["spec"]["maxUnavailible"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(budget, VERSIONS[0], strict=True)


def test_every_file_is_part_of_a_kustomization() -> None:
    """No file lies there that is never applied, and none is named that is not there."""
    named = {FOLDER / "prometheus-adapter.yaml", FOLDER / "alerts-head.yaml"}
    for file in FOLDER.rglob("kustomization.yaml"):
        [kustomization] = read(file)
        patches = [patch["path"] for patch in kustomization.get("patches", []) if "path" in patch]
        sources = [*kustomization.get("resources", []), *kustomization.get("components", []), *patches]
        for source in sources:
            path = (file.parent / source).resolve()
            assert path.is_file() or (path / "kustomization.yaml").is_file(), (file, source)
            named.add(path)
        named.add(file)
    assert {path for path in FOLDER.rglob("*") if path.is_file()} == {
        path for path in named if path.is_file()
    }


def test_every_component_is_used_or_told_of() -> None:
    """A component is part of an overlay, or the page on deployment names it."""
    overlays = "".join(file.read_text() for file in (FOLDER / "overlays").rglob("*.yaml"))
    told = (ROOT / "deploy/README.md").read_text()
    for component in (FOLDER / "components").iterdir():
        assert f"components/{component.name}\n" in overlays or f"`{component.name}`" in told, component.name


def test_whatever_selects_pods_selects_the_servers(objects: Objects) -> None:
    """Services, budget, policies and the spread find the server's pods, and only those: none is empty."""
    labels = pod(objects)["metadata"]["labels"]
    selectors = []
    for found in objects:
        spec = found.get("spec", {})
        if found["kind"] == "Service":
            selectors.append(spec["selector"])
        elif found["kind"] == "NetworkPolicy":
            selectors.append(spec["podSelector"]["matchLabels"])
        elif found["kind"] in {"Deployment", "PodDisruptionBudget"}:
            selectors.append(spec["selector"]["matchLabels"])
    selectors += [
        spread["labelSelector"]["matchLabels"] for spread in pod(objects)["spec"]["topologySpreadConstraints"]
    ]
    assert len(selectors) >= 6
    assert all(selector == LABEL and selector.items() <= labels.items() for selector in selectors)


def test_settings_are_settings(objects: Objects) -> None:
    """Every variable is a setting of the server, with a value that it takes."""
    variables = environment(objects)
    given = {name.removeprefix("TRIMVIT_").lower(): value for name, value in variables.items()}
    assert all(name.startswith("TRIMVIT_") for name in variables)
    assert set(given) <= set(Settings.model_fields)
    Settings.model_validate(given)


def test_threads_are_the_cores_that_the_container_may_use(objects: Objects) -> None:
    """The server reads the container's limit, so there is one, and no second number beside it."""
    assert "TRIMVIT_THREADS" not in environment(objects)
    assert "cpu" in container(objects)["resources"]["limits"]


def test_probes_ask_what_the_server_answers(objects: Objects) -> None:
    """Started and ready by /readyz, alive by /livez, on the operations port."""
    asked = {}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        question = container(objects)[probe]["httpGet"]
        assert question["port"] == "operations"
        assert question["path"] in operations_paths()
        asked[probe] = question["path"]
    assert asked == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}


def test_loading_may_take_as_long_as_the_server_lets_it(objects: Objects) -> None:
    """The startup probe is more patient than the server itself."""
    probe = container(objects)["startupProbe"]
    assert "TRIMVIT_LOAD_LIMIT_S" not in environment(objects)
    limit: float = Settings.model_fields["load_limit_s"].default
    assert probe["periodSeconds"] * probe["failureThreshold"] > limit


def test_ports_are_those_that_the_server_listens_on(objects: Objects) -> None:
    """The container's ports, their settings, and the Services' targets agree."""
    settings = environment(objects)
    assert "TRIMVIT_PORT" not in settings
    assert ports(objects) == {
        "http": Settings.model_fields["port"].default,
        "operations": int(settings["TRIMVIT_OPERATIONS_PORT"]),
    }
    assert settings["TRIMVIT_OPERATIONS_HOST"] == "0.0.0.0"  # the pod's address, which probes ask
    targets = {
        found["metadata"]["name"]: [port["targetPort"] for port in found["spec"]["ports"]]
        for found in objects
        if found["kind"] == "Service"
    }
    assert targets == {"trimvit": ["http"], "trimvit-operations": ["operations"]}


def test_policies_let_users_and_monitoring_in_only(objects: Objects) -> None:
    """Anyone reaches the http port, a named namespace the operations port; out goes only what `hub` lets."""
    let_in, let_out = {}, {}
    for policy in (found for found in objects if found["kind"] == "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            for port in rule["ports"]:
                assert port["port"] in ports(objects)
                let_in[port["port"]] = "from" in rule
        if policy["spec"].get("egress"):
            let_out[policy["metadata"]["name"]] = True
    assert "Egress" in only(objects, "NetworkPolicy")["spec"]["policyTypes"]
    assert let_in.pop("http") is False
    assert let_in in ({}, {"operations": True})
    assert set(let_out) <= {"trimvit-hub"}


def test_services_are_not_described_in_the_environment(objects: Objects) -> None:
    """A Service called trimvit would be, in variables that begin as our settings do."""
    assert pod(objects)["spec"]["enableServiceLinks"] is False


def test_the_pod_is_locked_in(objects: Objects, instructions: list[tuple[str, str]]) -> None:
    """The image's user, nothing writable but volumes, no capability, no way to gain one, no token."""
    spec, locked = pod(objects)["spec"], container(objects)["securityContext"]
    user = [rest for word, rest in instructions if word == "USER"][-1]
    assert f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" == user
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert locked == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_what_the_server_writes_is_a_volume(objects: Objects, instructions: list[tuple[str, str]]) -> None:
    """/tmp and the hub's cache, which the image names, are volumes that end with the pod, each bounded."""
    cache = re.search(r"HF_HOME=(\S+)", [rest for word, rest in instructions if word == "ENV"][-1])
    assert cache is not None
    mounts = {mount["mountPath"]: mount for mount in container(objects)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod(objects)["spec"]["volumes"]}
    writable = {path for path, mount in mounts.items() if not mount.get("readOnly")}
    assert writable == {"/tmp", cache[1]}
    assert all(volumes[mounts[path]["name"]]["emptyDir"]["sizeLimit"] for path in writable)
    assert {mount["name"] for mount in mounts.values()} == set(volumes)


def test_stopping_leaves_time_to_answer(objects: Objects) -> None:
    """preStop and the server's own grace end before Kubernetes does."""
    assert "TRIMVIT_SHUTDOWN_GRACE_S" not in environment(objects)
    waits = container(objects)["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace: float = Settings.model_fields["shutdown_grace_s"].default
    assert waits > 0
    assert pod(objects)["spec"]["terminationGracePeriodSeconds"] > waits + grace


def test_requests_and_limits_are_set(objects: Objects) -> None:
    """Scheduled for what it may use of cores, bounded in memory, and in whole cores, which threads are."""
    resources = container(objects)["resources"]
    assert resources["requests"]["cpu"] == resources["limits"]["cpu"]
    assert resources["limits"]["cpu"].isdigit()
    assert set(resources["requests"]) == {"cpu", "memory"} <= set(resources["limits"])


def test_prometheus_finds_the_pods(repository: Path) -> None:
    """The ServiceMonitor selects the operations Service and its port, as the job that the alerts know."""
    objects = rendered(FOLDER / "overlays/cpu")
    monitor = only(objects, "ServiceMonitor")["spec"]
    service = only(objects, "Service", "trimvit-operations")
    labels = service["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert (
        not monitor["selector"]["matchLabels"].items()
        <= only(objects, "Service")["metadata"]["labels"].items()
    )
    configuration = yaml.safe_load((repository / "deploy/prometheus/prometheus.yml").read_text())
    assert labels[monitor["jobLabel"]] == configuration["scrape_configs"][0]["job_name"]
    [endpoint] = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["path"] in operations_paths()
    assert endpoint["interval"] == configuration["global"]["scrape_interval"]


def test_grafana_is_given_the_dashboard(repository: Path) -> None:
    """The ConfigMap holds the repository's dashboard, with the label that Grafana's sidecar looks for."""
    found = only(rendered(FOLDER / "overlays/cpu"), "ConfigMap", "trimvit-dashboard")
    dashboard = (repository / "deploy/grafana/dashboards/trimvit.json").read_text()
    assert found["data"] == {"trimvit.json": dashboard}
    assert found["metadata"]["labels"] == {"grafana_dashboard": "1"}


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_the_autoscaler_alone_says_how_many(overlay: str) -> None:
    """Where there is an autoscaler, the Deployment has no number that applying would bring back."""
    objects = rendered(FOLDER / "overlays" / overlay)
    autoscaler = only(objects, "HorizontalPodAutoscaler")["spec"]
    deployment = only(objects, "Deployment")
    assert autoscaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"]
    assert 1 < autoscaler["minReplicas"] < autoscaler["maxReplicas"]


def adapted() -> dict[str, str]:
    """The metrics that prometheus-adapter makes, with the series each is made of."""
    [values] = read(FOLDER / "prometheus-adapter.yaml")
    return {rule["name"]["as"]: rule["seriesQuery"].partition("{")[0] for rule in values["rules"]["custom"]}


def test_the_autoscalers_metrics_exist() -> None:
    """Each is made by the adapter, of a series that the server exposes; nothing is made in vain."""
    [autoscaler] = read(FOLDER / "components/autoscaling/autoscaler.yaml")
    asked = {metric["pods"]["metric"]["name"] for metric in autoscaler["spec"]["metrics"]}
    assert asked == set(adapted())
    assert set(adapted().values()) <= set(exposed())


def test_the_autoscaler_acts_before_images_are_refused() -> None:
    """The wait that it aims at is well below that at which the server refuses."""
    [autoscaler] = read(FOLDER / "components/autoscaling/autoscaler.yaml")
    [target] = [
        metric["pods"]["target"]["averageValue"]
        for metric in autoscaler["spec"]["metrics"]
        if metric["pods"]["metric"]["name"] == "trimvit_queue_seconds"
    ]
    assert float(target) <= Settings.model_fields["max_queue_s"].default / 2


def test_the_adapters_queries_are_valid(promtool: str, tmp_path: Path) -> None:
    """Filled in as the adapter does it, each query is one that Prometheus can parse."""
    [values] = read(FOLDER / "prometheus-adapter.yaml")
    rules = []
    for rule in values["rules"]["custom"]:
        query = rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"].partition("{")[0])
        query = query.replace("<<.LabelMatchers>>", 'namespace="here",pod=~"a|b"')
        rules.append({"record": rule["name"]["as"], "expr": query.replace("<<.GroupBy>>", "pod")})
    assert "<<" not in str(rules)
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "adapter", "rules": rules}]}))
    ended = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_alerts_become_a_rule_of_the_operator(repository: Path) -> None:
    """The command of the page on deployment makes a PrometheusRule with just the alerts that are tested."""
    page = (repository / "deploy/README.md").read_text()
    [command] = [line for line in page.splitlines() if "alerts-head.yaml" in line]
    made, _, apply = command.rpartition(" | ")
    assert apply == "kubectl apply -f -"
    ended = subprocess.run(["bash", "-c", made], cwd=repository, capture_output=True, text=True, check=True)
    rule = yaml.safe_load(ended.stdout)
    assert rule["kind"] == "PrometheusRule"
    assert rule["spec"] == yaml.safe_load((repository / "deploy/prometheus/alerts.yml").read_text())


def test_gpu_overlay_gives_each_pod_a_gpu() -> None:
    """One GPU, by a name that the server does not fall back from; a rollout waits for none to be free."""
    objects = rendered(FOLDER / "overlays/gpu")
    assert container(objects)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert environment(objects)["TRIMVIT_DEVICE"] == "cuda:0"
    assert only(objects, "Deployment")["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0


def test_keys_are_read_from_the_mounted_secret(everything: Path) -> None:
    """The keys' file lies in the Secret's folder, mounted whole so that changes reach it."""
    objects = rendered(everything)
    file = Path(environment(objects)["TRIMVIT_API_KEYS_FILE"])
    [volume] = [volume for volume in pod(objects)["spec"]["volumes"] if "secret" in volume]
    [mount] = [one for one in container(objects)["volumeMounts"] if one["name"] == volume["name"]]
    assert file.parent == Path(mount["mountPath"])
    assert "subPath" not in mount
    assert f"--from-file={file.name}=" in (ROOT / "deploy/README.md").read_text()
