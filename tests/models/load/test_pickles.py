"""Pickles are read without their code: harmless classes are replaced, dangerous names are refused."""

import collections
import functools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.load import ModelError
from models.load.files import read_file
from models.load.pickles import StandIn


class Calls:
    """Calls something when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    "call",
    [
        Calls(os.system, "touch was-here"),
        Calls(subprocess.call, ["touch", "was-here"]),
        Calls(eval, "open('was-here', 'w')"),
        Calls(exec, "open('was-here', 'w')"),
        Calls(__import__, "os"),
        Calls(getattr, "x", "upper"),
        Calls(open, "was-here", "w"),
        Calls(torch.load, "was-here"),
        Calls(torch.hub.load, "somebody/else", "model"),
    ],
    ids=lambda call: f"{call.call[0].__module__}.{call.call[0].__qualname__}",
)
def test_calls_that_no_checkpoint_needs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Calls, new: bool
) -> None:
    """Beside good weights, in either of torch's formats, and nothing of it is run."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.pth"
    content = {"state_dict": {"head.weight": torch.zeros(3)}, "more": call}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    with pytest.raises(ModelError, match=r"it calls \S+, which no checkpoint needs") as caught:
        read_file(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "was-here").exists()


class Config(dict[str, Any]):
    """A dictionary of a class of its own."""


class Nodes(list[Any]):
    """A list of a class of its own."""


@pytest.mark.parametrize("new", [True, False])
def test_classes_of_others_become_stand_ins(tmp_path: Path, new: bool) -> None:
    """They hold nothing; dictionaries and lists of a class of their own keep their content."""
    path = tmp_path / "run.ckpt"
    content = {
        "weight": torch.ones(2),
        "config": Config(depth=12),
        "nodes": Nodes([1, 2]),
        "counts": collections.defaultdict(int, {"a": 1}),
        "make": functools.partial(Config, depth=12),
        "path": Path("run"),
    }
    torch.save(content, path, _use_new_zipfile_serialization=new)
    got = read_file(path)
    assert isinstance(got, dict)
    assert torch.equal(got["weight"], content["weight"])
    assert got["config"] == {"depth": 12}
    assert list(got["nodes"]) == [1, 2]
    assert got["counts"] == {"a": 1}
    assert isinstance(got["make"], StandIn)
    assert isinstance(got["path"], StandIn)
