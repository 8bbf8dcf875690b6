"""What the forward pass is tried with, on a fake GPU and on a real one."""

from typing import Any

from models.paca import Paca
from models.schedule import CRITERIA, REDUCERS, Pruning
from models.transforms import InputSpec

SPEC = InputSpec((20, 28), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
# With a life predictor and queries, for the criterion and the reducer that need them.
HEADS_OF_8 = {"embed_dim": 48, "life": 1, "pool": True}

BATCHES = {
    "unpruned": [Pruning()] * 3,
    **{f"dense {name}": [Pruning(0.6, name)] * 3 for name in CRITERIA},
    **{f"dense {name}": [Pruning(0.6, reducer=name)] * 3 for name in REDUCERS},
    "one ratio, all criteria": [Pruning(0.6, criterion) for criterion in CRITERIA],
    "ragged": [
        Pruning((0.6, 1.0, 0.2, 0.6, 0.7, 0.5)[place % 6], criterion)
        for place, criterion in enumerate(CRITERIA)
    ],
    "all reducers": [Pruning(ratio, reducer=name) for name in REDUCERS for ratio in (0.6, 0.3, 0.6)],
}
MODELS: dict[str, dict[str, Any]] = {
    "CLS": {},
    "average": {"class_token": False, "reg_tokens": 1, "global_pool": "avg"},
    "map": {"reg_tokens": 2, "global_pool": "map"},
    "maximum": {"global_pool": "avgmax"},
    "residual": {"global_pool": "prr"},
    "clusters": {"paca": Paca((0, 4), 3)},
    "static": {"static": 1},
}
