"""What `trimvit classify` prints: a table for people, or lines of JSON for programs."""

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.commands.photographs import Photograph
from app.errors import Problem
from app.messages.model import ModelInfo
from models.names import shown

_WIDEST_NAME = 48  # characters


class Lines:
    """JSON for programs: one object per line and photograph, in order."""

    def __init__(self, model: ModelInfo) -> None:
        self._model = model.name

    def answered(self, photograph: Photograph, result: dict[str, Any], picture: Path | None) -> None:
        """Print the result, and the path of its picture."""
        own = {} if picture is None else _named("mask_picture", str(picture))
        self._print({**_named("photograph", str(photograph)), "model": self._model, **result, **own})

    def failed(self, photograph: Photograph, problem: Problem) -> None:
        """Print the problem of a photograph without an answer."""
        self._print({**_named("photograph", str(photograph)), "problem": problem.to_dict()})

    def _print(self, line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)


def _named(member: str, path: str) -> dict[str, str]:
    """A path as a member of a JSON object. If it is not UTF-8, its bytes are added in a second member."""
    encoded = os.fsencode(path)
    text = encoded.decode(errors="replace")
    if text == path:
        return {member: path}
    return {member: text, f"{member}_base64": base64.b64encode(encoded).decode()}


class Table:
    """For people: a row for each photograph with its best label, and its further labels below."""

    def __init__(self, photographs: Sequence[Photograph]) -> None:
        self._width = min(
            max(len("photograph"), *(len(shown(str(each))) for each in photographs)), _WIDEST_NAME
        )
        self._head: str | None = (
            f"{'photograph':<{self._width}}  keep_ratio  patches kept  compute   score  label"
        )

    def answered(self, photograph: Photograph, result: dict[str, Any], _: Path | None) -> None:
        """Print the labels."""
        if self._head is not None:
            print(self._head)
            self._head = None
        name = shown(str(photograph))
        if len(name) > self._width:  # keep the end of a path, which is more informative than its beginning
            name = "…" + name[-self._width + 1 :]
        patches = f"{result['patches']['kept']} of {result['patches']['total']}"
        begin = (
            f"{name:<{self._width}}  {result['keep_ratio']:>10.4g}  {patches:>12}  {result['compute']:>7.3f}"
        )
        for label in result["labels"]:
            print(f"{begin}  {label['score']:>6.4f}  {label['label']}", flush=True)
            begin = " " * len(begin)

    def failed(self, photograph: Photograph, problem: Problem) -> None:
        """Print nothing: the error is already on standard error."""
