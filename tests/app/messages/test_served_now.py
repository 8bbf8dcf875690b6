"""Which models are served, as it is left for processes that start anew."""

import logging
from pathlib import Path

import pytest

from app.messages.served_now import read_served, write_served
from app.settings.settings import Settings
from app.worker.process import served_now


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Nothing, before anything was loaded or unloaded."""
    path = tmp_path / "served-models"
    assert read_served(path) is None
    write_served(path, ["b", "a"])
    assert read_served(path) == ("b", "a")
    write_served(path, [])
    assert read_served(path) == ()
    assert [each.name for each in tmp_path.iterdir()] == ["served-models"]


def test_what_cannot_be_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "served-models"
    path.write_text("{")
    with caplog.at_level(logging.ERROR):
        assert read_served(path) is None
    assert "cannot read the list of served models" in caplog.text


def test_a_worker_starts_with_what_is_served_now(tmp_path: Path) -> None:
    """The default model always; a name that is not listed any more is passed over."""
    path = tmp_path / "served-models"
    settings = Settings(model="a=x,b=y", loadable="c=z", model_repository=True)
    assert [model.name for model in served_now(settings, path)] == ["a", "b"]
    write_served(path, ["c", "gone"])
    assert [model.reference for model in served_now(settings, path)] == ["x", "z"]
    assert [model.name for model in served_now(Settings(model="a=x,b=y"), path)] == ["a", "b"]
    assert [model.name for model in served_now(settings, None)] == ["a", "b"]
