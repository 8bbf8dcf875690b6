"""Attention over a batch whose images may differ in length: a protocol (way.py) and three implementations.
choice.py chooses one of them for each forward pass.

`runs` computes images run by run, `windows` in few different shapes for CPUs in bfloat16, and `varlen` all
images in one call on a GPU. `dense` is the attention of images of one length, which `runs` uses.
"""

from models.attend.choice import way_for
from models.attend.heads import Attention, Parts, apart, heads, placed, width_of
from models.attend.runs import Runs
from models.attend.way import Way

__all__ = ["Attention", "Parts", "Runs", "Way", "apart", "heads", "placed", "way_for", "width_of"]
