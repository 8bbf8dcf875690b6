"""What users can mend is one line, not a traceback."""

from pathlib import Path

import pytest
import torch

from models.training import command
from models.training.config import TrainConfig


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 86 bytes."),
    ],
)
def test_too_little_memory_is_told_with_what_to_do(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: TrainConfig) -> None:
        raise error

    monkeypatch.setattr(command, "fine_tune", fails)
    assert command.train(TrainConfig(data=Path("pictures"), output=Path("run"))) == 1
    told = capsys.readouterr().err
    assert told.startswith("trimvit train: not enough memory: ")
    assert told.endswith("Use a smaller --batch-size or a larger --accumulate.\n")
    assert told.count("\n") == 1


def test_what_is_a_bug_keeps_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: TrainConfig) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(command, "fine_tune", fails)
    with pytest.raises(RuntimeError, match="shapes"):
        command.train(TrainConfig(data=Path("pictures"), output=Path("run")))
