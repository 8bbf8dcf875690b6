"""The built image, unpacked, with the server in it: read-only, without a network, without root.

No container engine is needed, only root on Linux. TRIMVIT_TEST_IMAGE names the unpacked image's folder, as
`buildah mount $(buildah from trimvit)` or `docker export` gives it.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.system.server import wait_until

pytestmark = [
    pytest.mark.long,
    pytest.mark.system,
    pytest.mark.skipif(
        "TRIMVIT_TEST_IMAGE" not in os.environ, reason="TRIMVIT_TEST_IMAGE names no unpacked image"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can unshare what a container has of its own"),
]

UNSHARE = ("unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child")
# What an engine gives a container by --read-only --tmpfs /tmp --network none --cap-drop ALL and
# no-new-privileges: namespaces of its own, the image read-only, the few devices, and no other user to become.
START = """
set -eu
mount --make-rprivate /
mount --bind "$ROOT" "$ROOT"
mount --options remount,bind,ro "$ROOT"
mount --types proc proc "$ROOT/proc"
mount --types tmpfs --options mode=1777,size=512m tmpfs "$ROOT/tmp"
mount --types tmpfs tmpfs "$ROOT/dev"
for device in null zero random urandom; do
  touch "$ROOT/dev/$device"
  mount --bind "/dev/$device" "$ROOT/dev/$device"
done
ip link set lo up
exec chroot "$ROOT" setpriv --reuid "$USER_ID" --regid "$GROUP_ID" --clear-groups --bounding-set=-all \
  --no-new-privs env --ignore-environment "$@"
"""

Instructions = list[tuple[str, str]]


def environment(instructions: Instructions) -> dict[str, str]:
    """The image's, as its ENV instructions make it."""
    found = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    for word, rest in instructions:
        if word == "ENV":
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                found[name] = value.replace("$PATH", found["PATH"])
    return found


def last(instructions: Instructions, word: str) -> str:
    """Arguments of the last such instruction, the one that counts."""
    return [rest for instruction, rest in instructions if instruction == word][-1]


@dataclass(frozen=True)
class Container:
    """A running server of the image."""

    supervisor: psutil.Process
    log: Path
    environment: dict[str, str]

    def run(self, *command: str, inside: bool) -> subprocess.CompletedProcess[str]:
        """A command beside the server: in its network with this machine's files, or wholly inside."""
        own = ["--all", "--root", "--wd=/", "--setuid=10001", "--setgid=10001"] if inside else ["--net"]
        started = ["env", "-i", *(f"{name}={value}" for name, value in self.environment.items()), *command]
        return subprocess.run(
            ["nsenter", f"--target={self.supervisor.pid}", *own, *(started if inside else command)],
            capture_output=True,
            text=True,
            timeout=60,
        )

    def ask(self, path: str, *options: str) -> Any:
        """The server's answer to curl."""
        done = self.run("curl", "--silent", "--fail", *options, f"http://127.0.0.1:8000{path}", inside=False)
        assert done.returncode == 0, (done.stderr, self.log.read_text())
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def container(instructions: Instructions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """The image's own command, started in namespaces of its own; ready."""
    for tool in ("unshare", "nsenter", "ip", "curl"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    log = tmp_path_factory.mktemp("image") / "server.log"
    given = environment(instructions)
    user, group = last(instructions, "USER").split(":")
    command = [*json.loads(last(instructions, "ENTRYPOINT")), *json.loads(last(instructions, "CMD"))]
    pairs = [f"{name}={value}" for name, value in given.items()]
    with log.open("wb") as sink:
        outside = subprocess.Popen(
            [*UNSHARE, "sh", "-c", START, "sh", *pairs, *command],
            env={**os.environ, "ROOT": os.environ["TRIMVIT_TEST_IMAGE"], "USER_ID": user, "GROUP_ID": group},
            stderr=sink,
        )
    try:
        wait_until(lambda: "listening on" in log.read_text() or outside.poll() is not None, "a listener")
        assert outside.poll() is None, log.read_text()
        [supervisor] = psutil.Process(outside.pid).children()
        running = Container(supervisor, log, given)
        ready = ("curl", "--silent", "--fail", "http://127.0.0.1:8000/readyz")
        wait_until(lambda: running.run(*ready, inside=False).returncode == 0, "the server to be ready", 280)
        yield running
        supervisor.terminate()
        assert outside.wait(60) == 0, log.read_text()
        assert "stopped" in log.read_text()
    finally:
        outside.kill()
        outside.wait()


def test_a_photograph_gets_its_label(container: Container, repository: Path) -> None:
    """The bundled model answers, asked by curl."""
    photograph = repository / "tests/photographs/china.jpg"
    answer = container.ask("/v1/classify?keep_ratio=0.5&top_k=1", "--data-binary", f"@{photograph}")
    [result] = answer["results"]
    assert result["labels"][0]["label"] == "church"
    assert result["patches"]["kept"] == 32


def test_health_check_finds_it_healthy(container: Container, instructions: Instructions) -> None:
    """The image's own health check succeeds inside, with the image's own Python."""
    check = last(instructions, "HEALTHCHECK")
    done = container.run(*json.loads(check[check.index("[") :]), inside=True)
    assert done.returncode == 0, done.stderr


def test_no_process_is_roots_or_could_become_it(container: Container) -> None:
    """All run as the image's user, without capabilities and without a way to gain one."""
    processes = [container.supervisor, *container.supervisor.children(recursive=True)]
    assert len(processes) >= 5  # supervisor, worker, HTTP, decoders
    for process in processes:
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert re.search(r"^Uid:(\t10001){4}$", status, re.MULTILINE)
        assert re.search(r"^Gid:(\t10001){4}$", status, re.MULTILINE)
        assert set(re.findall(r"^Cap(?:Prm|Eff|Bnd|Amb):\t(\w+)$", status, re.MULTILINE)) == {"0" * 16}
        assert "NoNewPrivs:\t1" in status


def test_nothing_is_written_but_in_tmp(container: Container) -> None:
    """The image is read-only for the server, /tmp is not, and no other host can be reached."""
    tried = container.run("touch", "/opt/trimvit/here", inside=True)
    assert "Read-only file system" in tried.stderr
    assert container.run("touch", "/tmp/here", inside=True).returncode == 0
    links = json.loads(container.run("ip", "-json", "link", inside=False).stdout)
    assert [link["ifname"] for link in links if "UP" in link["flags"]] == ["lo"]
