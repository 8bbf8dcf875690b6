"""Attention over a batch whose images may differ in length: one protocol (way.py), and four implementations,
one of which is chosen for each forward pass (choice.py).

`dense` is for images of one length; `runs` computes run by run, `windows` in few shapes for a CPU in
bfloat16, `varlen` all images in one call on a GPU.
"""

from models.attend.choice import way_for
from models.attend.heads import Attention, Parts, apart, heads, placed, width_of
from models.attend.runs import Runs
from models.attend.way import Way

__all__ = ["Attention", "Parts", "Runs", "Way", "apart", "heads", "placed", "way_for", "width_of"]
