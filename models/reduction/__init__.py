"""Applies reducers to a batch: run by run (by_runs.py), or to all images at once (in_one.py), as the plan
specifies. The reducers themselves are in reducers.py and token_pool.py."""

from models.reduction.reduce import reduce
from models.reduction.reducible import KeysOf

__all__ = ["KeysOf", "reduce"]
