"""A checkpoint whose first blocks have static attention, the whole way in real processes."""

from pathlib import Path

import pytest

from models.load import load
from tests.system.served import assert_served_as_offline
from tests.system.small_network import save_static_network


@pytest.mark.parametrize("exact", [False, True])
def test_it_is_served_as_it_answers_offline(tmp_path: Path, *, exact: bool) -> None:
    """In mixed batches, pruned per request: every image is answered as it is alone, at the cost that counts
    its static blocks."""
    path = tmp_path / "static.safetensors"
    save_static_network(path)
    assert load(str(path)).model.arch.static_blocks == 2
    assert_served_as_offline(tmp_path, path, *(["--exact"] if exact else []))
