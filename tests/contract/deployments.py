"""The ways to serve TrimViT, each as an address with the same promises behind it."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.ray_cluster import ray_cluster, running_on_ray
from tests.system.server import running_server, samples


@dataclass(frozen=True)
class Deployment:
    """A running service. Tests know its address and nothing of what is behind it."""

    url: str

    def classify(self, image: bytes, **options: object) -> httpx.Response:
        """POST one photograph as the raw body, with options in the query."""
        return self._post("/v1/classify", image, options)

    def embed(self, image: bytes, **options: object) -> httpx.Response:
        """The same for its embedding."""
        return self._post("/v1/embed", image, options)

    def _post(self, path: str, image: bytes, options: Mapping[str, object]) -> httpx.Response:
        return httpx.post(
            f"{self.url}{path}",
            params={name: str(value).lower() for name, value in options.items()},
            content=image,
            headers={"Content-Type": "image/jpeg"},
            timeout=300,
        )

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples with this name and these labels, whatever others they have."""
        wanted = set(labels.items())
        return sum(
            value for (sample, has), value in samples(self.url).items() if sample == name and wanted <= has
        )


Start = Callable[[Path], AbstractContextManager[Deployment]]

# On a busy machine, some dozen images may take longer than the deadline that is usual.
PATIENT = ("--default-deadline-ms", "300000", "--max-queue-s", "600")


def _served(*flags: str) -> Start:
    """`trimvit serve` with these flags."""

    @contextmanager
    def start(folder: Path) -> Iterator[Deployment]:
        with running_server(folder, *flags, *PATIENT) as server:
            yield Deployment(server.url)

    return start


@contextmanager
def _on_ray(folder: Path) -> Iterator[Deployment]:
    """`trimvit ray` with two replicas, each on a node of its own."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed (extra ray)")
    with (
        ray_cluster(nodes=2) as cluster,
        running_on_ray(cluster, "--min-replicas", "2", "--max-replicas", "2", *PATIENT) as url,
    ):
        yield Deployment(url)


DEPLOYMENTS: dict[str, Start] = {
    "one HTTP process": _served(),
    "two HTTP processes, two workers": _served("--http-workers", "2", "--workers-per-device", "2"),
    "two HTTP processes": _served("--http-workers", "2"),
    "two workers": _served("--workers-per-device", "2"),
    "Ray with two replicas": _on_ray,
}
# Ray gives each of its processes half a minute to start, however busy the machine is; what several processes
# of one kind could do wrong, those of both kinds do, too; and one of each kind has the tests of tests/system.
LONG = frozenset(DEPLOYMENTS) - {"two HTTP processes, two workers"}


def result_of(response: httpx.Response) -> dict[str, Any]:
    """The one result of an answered request."""
    assert response.status_code == 200, response.text
    (result,) = response.json()["results"]
    assert isinstance(result, dict)
    return result
