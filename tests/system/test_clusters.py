"""A checkpoint whose tokens attend to clusters of patches in some blocks, the whole way in real processes."""

from pathlib import Path

from models.load import load
from tests.system.served import assert_served_as_offline
from tests.system.small_network import save_clustered_network


def test_it_is_served_as_it_answers_offline(tmp_path: Path) -> None:
    """In mixed batches, pruned per request: every image is answered as it is alone, at the cost that counts
    its clusters."""
    path = tmp_path / "clustered.safetensors"
    save_clustered_network(path)
    assert load(str(path)).model.arch.paca is not None
    assert_served_as_offline(tmp_path, path)
