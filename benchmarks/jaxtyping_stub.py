"""A stub of jaxtyping for machines that only have PyTorch and timm. With it, annotations are plain types
without shapes, and nothing is checked.
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


def install_jaxtyping_stub() -> None:
    """Install the stub if jaxtyping is not available. Call this before importing from `models`."""
    if "jaxtyping" not in sys.modules and find_spec("jaxtyping") is None:
        sys.modules["jaxtyping"] = _StandIn("jaxtyping")
