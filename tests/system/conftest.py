"""What the system tests share."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.system.server import Server, running_server


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Everything in this folder starts processes."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with the bundled model, for tests that do it no harm."""
    with running_server(tmp_path_factory.mktemp("server"), "--log-level", "debug") as running:
        yield running
