"""Files of weights with bytes changed, lost or added: weights come out, or words."""

from pathlib import Path

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from models.load import ModelError, read_card
from models.load.files import read_file
from models.load.state_dict import find_weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small network's weights in the three formats."""
    folder = tmp_path_factory.mktemp("whole")
    state = timm.create_model("test_vit", num_classes=5, depth=1, embed_dim=32).state_dict()
    torch.save({"state_dict": state, "data": Path("birds")}, folder / "new.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "own.safetensors")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["new.pth", "old.pth", "own.safetensors"]),
    at=st.floats(0, 1),
    lost=st.integers(0, 60),
    added=st.binary(max_size=20),
)
def test_damage_is_told(
    whole: dict[str, bytes], tmp_path: Path, name: str, at: float, lost: int, added: bytes
) -> None:
    """No damage is a traceback, and no refusal is longer than two lines."""
    content = whole[name]
    place = int(at**4 * len(content))  # mostly where the structure is
    path = tmp_path / name
    path.write_bytes(content[:place] + added + content[place + lost :])
    try:
        read_card(path)
        find_weights(read_file(path), path)
    except ModelError as error:
        assert str(error).count("\n") <= 1  # noqa: PT017 - weights that come out are as good
