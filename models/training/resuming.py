"""What an output folder holds of a run, and whether it is the one that a command would go on with."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from models.files import write_whole
from models.names import shown
from models.training.loading import BrokenImages
from models.training.outputs import make_output_folder

CHECKPOINT = "model.safetensors"
RESUME_STATE = "resume.pt"
LOG = "log.jsonl"

_LONGEST_VALUE = 60  # characters
_MOST_NAMES = 3


class ResumeError(ValueError):
    """The output folder holds a run with other settings, or one that cannot be read."""


def digest_of_names(paths: Iterable[Path], root: Path) -> str:
    """SHA-256 over the images' paths within their folder, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(str(path.relative_to(root)).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def check_same_run(folder: Path, there: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Raises ResumeError, which names what differs, where the run that is there is another."""
    differences = [
        _difference(name, there.get(name), now.get(name))
        for name in {**there, **now}
        if there.get(name) != now.get(name)
    ]
    if differences:
        raise ResumeError(
            f"{shown(folder)} holds a run with other settings ({'; '.join(differences)}); "
            "go on with those or choose another output folder"
        )


def _difference(name: str, there: object, now: object) -> str:
    if name == "images":
        return "the images are others: some were added, removed or renamed"
    if isinstance(there, list) and isinstance(now, list) and max(len(there), len(now)) > _MOST_NAMES:
        gone, new = (
            [each for each in one if each not in other] for one, other in ((there, now), (now, there))
        )
        parts = [
            f"{', '.join(map(str, names[:_MOST_NAMES]))}{', ...' if len(names) > _MOST_NAMES else ''} {what}"
            for names, what in ((gone, "gone"), (new, "new"))
            if names
        ]
        return f"{name}: {' and '.join(parts) or 'in another order'}"
    return f"{name} {_short(there)}, not {_short(now)}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


class Run:
    """What the output folder holds of a run: a state to go on from, and the log up to there."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, object]) -> None:
        self._folder = folder
        self._fingerprint = fingerprint
        self._path = folder / RESUME_STATE

    def prepare(self, data: Path) -> None:
        """Make the folder. Raises OutputError where that cannot be, and ResumeError where it holds the model
        of a run that cannot be gone on with."""
        make_output_folder(self._folder, data)
        if (self._folder / CHECKPOINT).exists() and not self._path.exists():
            raise ResumeError(
                f"{shown(self._folder)} holds a {CHECKPOINT} and no {RESUME_STATE} to go on from; "
                "choose another output folder, or move the model away"
            )

    def resume(self, vit: torch.nn.Module, optimizer: torch.optim.Optimizer, broken: BrokenImages) -> int:
        """The step to go on from. Raises ResumeError for the state of another run, or none that can be
        read."""
        if not self._path.exists():
            return 0
        try:
            state = torch.load(self._path, weights_only=True)
            there, step = json.loads(state["config"]), int(state["step"])
        except OSError:
            raise
        except Exception as error:
            # torch says in many ways that a file is none of its own, or cut off.
            raise ResumeError(
                f"{shown(self._path)} cannot be read as the state of a run; remove it to start again, "
                "or choose another output folder"
            ) from error
        check_same_run(self._folder, there, self._fingerprint)
        vit.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        broken.found_before(state.get("broken", {}))
        return step

    def save(
        self, vit: torch.nn.Module, optimizer: torch.optim.Optimizer, broken: BrokenImages, step: int
    ) -> None:
        """Write the state after so many steps. Raises OSError; the state before is there then."""
        state = {
            "config": json.dumps(self._fingerprint),
            "model": vit.state_dict(),
            "optimizer": optimizer.state_dict(),
            "broken": broken.found,
            "step": step,
        }
        write_whole(self._path, lambda file: torch.save(state, file))

    def log_up_to(self, step: int) -> Path:
        """The log without the steps that were logged after the state: they are done, and logged, again."""
        path = self._folder / LOG
        if path.exists():
            kept = b"".join(path.read_bytes().splitlines(keepends=True)[:step])
            write_whole(path, lambda file: file.write(kept))
        return path
