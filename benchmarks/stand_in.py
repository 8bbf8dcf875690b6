"""In the place of jaxtyping on a machine that has PyTorch and timm alone. There annotations say what a tensor
is, but no shape, and nothing checks either.
"""

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class _Annotation:
    """``Float[Tensor, "rows D"]`` is ``Tensor``."""

    def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
        return item[0]


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> type[_Annotation]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Annotation


def stand_in_for_jaxtyping() -> None:
    """Where it is not installed. Before anything of `models` is imported."""
    if "jaxtyping" not in sys.modules and find_spec("jaxtyping") is None:
        sys.modules["jaxtyping"] = _StandIn("jaxtyping")
