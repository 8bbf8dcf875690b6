"""Fusing, merging, pooling and transforming in a batch: run by run (by_runs.py), or all images in one
(in_one.py); plan.py says which. What becomes of one group of patches is in reducers.py and token_pool.py."""

from models.reduction.reduce import reduce
from models.reduction.reducible import KeysOf

__all__ = ["KeysOf", "reduce"]
