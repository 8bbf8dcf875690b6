"""The state of a run in its output folder, and whether a command can resume it."""

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
    """The output folder holds a run with other settings, or one that cannot be read."""


class DivergedError(ValueError):
    """The weights of a run are no longer finite numbers."""


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
    """What a run goes on from after ``step`` steps. ``best``: the step and the mean top-1 of the best
    validation, if there was one."""

    vit: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None
    step: int = 0
    best: tuple[int, float] | None = None


def refuse_divergence(state: State) -> None:
    """Raises DivergedError if a weight is not a finite number, before that is saved: nothing is learned
    from then on."""
    for name, tensor in state.vit.state_dict().items():
        if not all_finite(tensor):
            raise DivergedError(
                f"the training has diverged: after {state.step} steps, {name} has values that are NaN or "
                "infinite; train again with a lower learning rate, into another output folder"
            )


class Run:
    """What the output folder holds of a run: a state to go on from, and the models."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, object]) -> None:
        self._folder = folder
        self._fingerprint = fingerprint
        self._path = folder / RESUME_STATE

    def prepare(self, data: Path) -> None:
        """Make the folder. Raises OutputError if that cannot be, and ResumeError if it holds the model
        of a run that cannot be gone on with."""
        make_output_folder(self._folder, data)
        if (self._folder / CHECKPOINT).exists() and not self._path.exists():
            raise ResumeError(
                f"{shown(self._folder)} contains a {CHECKPOINT} but no {RESUME_STATE} to resume from; "
                "choose another output folder, or move the model"
            )

    @property
    def resumes(self) -> bool:
        """Whether there is a state to go on from."""
        return self._path.exists()

    def resume(self, state: State, broken: BrokenImages) -> None:
        """Fill the state, if there is one to go on from. Raises ResumeError for the state of another run, or
        none that can be read."""
        if not self.resumes:
            return
        try:
            there = torch.load(self._path, weights_only=True, map_location="cpu")
            config, step = json.loads(there["config"]), int(there["step"])
        except OSError:
            raise
        except Exception as error:
            # torch says in many ways that a file is none of its own, or cut off.
            raise ResumeError(
                f"{shown(self._path)} is not a readable resume state; remove it to start again, or choose "
                "another output folder"
            ) from error
        check_same_run(self._folder, config, self._fingerprint)
        state.vit.load_state_dict(there["model"])
        state.optimizer.load_state_dict(there["optimizer"])
        if state.ema is not None:
            state.ema.module.load_state_dict(there["ema"])
        broken.found_before(there.get("broken", {}))
        state.step, state.best = step, there.get("best")

    def save(self, state: State, broken: Mapping[str, str]) -> None:
        """Write the state. Raises OSError; the state before is there then."""
        content = {
            "config": json.dumps(self._fingerprint),
            "model": state.vit.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "ema": None if state.ema is None else state.ema.module.state_dict(),
            "broken": dict(broken),
            "step": state.step,
            "best": state.best,
        }
        write_whole(self._path, lambda file: torch.save(content, file))
