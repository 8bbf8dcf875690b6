"""Messages to front ends about the models that may be loaded and unloaded while serving, and why a change was
not made."""

from typing import Literal

import msgspec

ModelState = Literal["ready", "loading", "unloading", "unloaded"]

# Why a worker has not loaded a model: it has not the memory, what is loaded cannot be served, it cannot be
# read now, or an error that nobody foresaw.
LoadFault = Literal["no-memory", "refused", "unreadable", "fault"]

# Why a model is not loaded or unloaded: so; or another change is under way, it is the default one, no worker
# is there, the worker died, workers loaded different models under its name, or one took too long.
ChangeFault = LoadFault | Literal["busy", "default", "no-worker", "worker-lost", "differs", "too-slow"]


class ModelEntry(msgspec.Struct, frozen=True, array_like=True):
    """A model of the repository. ``reason``: why it is not ready, if there is more to say."""

    name: str
    state: ModelState
    reason: str = ""
