"""Save and load the state of a run in its output folder, and check that a command can resume it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.utils import ModelEmaV3

from models.files import write_whole
from models.finite import all_finite
from models.names import shown
from models.training.loading import BrokenImages
from models.training.outputs import make_output_folder

CHECKPOINT = "model.safetensors"
BEST = "best.safetensors"
RESUME_STATE = "resume.pt"

_LONGEST_VALUE = 60  # characters
_MOST_NAMES = 3


class ResumeError(ValueError):
    """The output folder has a run with other settings, or one that cannot be read."""


class DivergedError(ValueError):
    """The weights of a run are NaN or infinite."""


def digest_of_names(paths: Iterable[Path], root: Path) -> str:
    """Return the SHA-256 of the paths relative to ``root``, in order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(str(path.relative_to(root)).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def check_same_run(folder: Path, there: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Raise ResumeError, with the differences, if the run in the folder (``there``) differs from this one
    (``now``)."""
    differences = [
        _difference(name, there.get(name), now.get(name))
        for name in {**there, **now}
        if there.get(name) != now.get(name)
    ]
    if differences:
        raise ResumeError(
            f"{shown(folder)} contains a run with other settings ({'; '.join(differences)}); use those "
            "settings, or choose another output folder"
        )


def _difference(name: str, there: object, now: object) -> str:
    if name == "images":
        return "the images are different: some were added, removed or renamed"
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


@dataclass(slots=True)
class State:
    """The state of a run after ``step`` steps. ``best``: the step and the mean top-1 of the best validation,
    if there was one."""

    vit: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None
    step: int = 0
    best: tuple[int, float] | None = None


def refuse_divergence(state: State) -> None:
    """Raise DivergedError if a weight is NaN or infinite. Called before saving, because such weights cannot
    recover."""
    for name, tensor in state.vit.state_dict().items():
        if not all_finite(tensor):
            raise DivergedError(
                f"the training has diverged: after {state.step} steps, {name} has values that are NaN or "
                "infinite; train again with a lower learning rate, into another output folder"
            )


class Run:
    """The output folder of a run, with its resume state and models."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, object]) -> None:
        self._folder = folder
        self.fingerprint = fingerprint
        self._path = folder / RESUME_STATE

    def prepare(self, data: Path) -> None:
        """Create the folder. Raises OutputError if this is not possible, and ResumeError if it has a model
        but no state to resume from."""
        make_output_folder(self._folder, data)
        if (self._folder / CHECKPOINT).exists() and not self._path.exists():
            raise ResumeError(
                f"{shown(self._folder)} contains a {CHECKPOINT} but no {RESUME_STATE} to resume from; "
                "choose another output folder, or move the model"
            )

    @property
    def resumes(self) -> bool:
        """Whether there is a state to resume from."""
        return self._path.exists()

    def resume(self, state: State, broken: BrokenImages) -> None:
        """Load the saved state into ``state``, if there is one. Raises ResumeError if it belongs to another
        run or cannot be read."""
        if not self.resumes:
            return
        try:
            there = torch.load(self._path, weights_only=True, map_location="cpu")
            config, step = json.loads(there["config"]), int(there["step"])
        except OSError:
            raise
        except Exception as error:
            # torch raises many kinds of errors for files that it did not write, or that are truncated.
            raise ResumeError(
                f"{shown(self._path)} is not a readable resume state; remove it to start again, or choose "
                "another output folder"
            ) from error
        check_same_run(self._folder, config, self.fingerprint)
        state.vit.load_state_dict(there["model"])
        state.optimizer.load_state_dict(there["optimizer"])
        if state.ema is not None:
            state.ema.module.load_state_dict(there["ema"])
        broken.found_before(there.get("broken", {}))
        state.step, state.best = step, there.get("best")

    def save(self, state: State, broken: Mapping[str, str]) -> None:
        """Write the state. If this raises OSError, the previous state is kept."""
        content = {
            "config": json.dumps(self.fingerprint),
            "model": state.vit.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "ema": None if state.ema is None else state.ema.module.state_dict(),
            "broken": dict(broken),
            "step": state.step,
            "best": state.best,
        }
        write_whole(self._path, lambda file: torch.save(content, file))
