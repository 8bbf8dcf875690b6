"""Messages to front ends about the models that may be loaded and unloaded while serving, and why a change was
not made."""

from typing import Literal

import msgspec

ModelState = Literal["ready", "loading", "unloading", "unloaded"]

# Why a worker could not load a model: not enough memory, a model that cannot be served, a model that cannot
# be read at the moment, or an unexpected error.
LoadFault = Literal["no-memory", "refused", "unreadable", "fault"]

# Why a model was not loaded or unloaded: a LoadFault, another change is in progress, it is the default model,
# there is no worker, the worker died, workers loaded different models under its name, or a worker took too
# long.
ChangeFault = LoadFault | Literal["busy", "default", "no-worker", "worker-lost", "differs", "too-slow"]


class ModelEntry(msgspec.Struct, frozen=True, array_like=True):
    """A model of the repository. ``reason``: why it is not ready, if there is more to say."""

    name: str
    state: ModelState
    reason: str = ""
