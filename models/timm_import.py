"""Imports timm, and with it torchvision, without PyTorch's compiler (torch._dynamo).

The compiler takes half of the time to import timm, and TrimViT does not use it. It is imported in two places:
by torchvision, to check whether an operator for object detection can be compiled, and by timm, to exclude
functions of NaFlexViT from compilation. While this module is imported, both get a stub; afterwards
`torch.compile` works as usual. Import it before timm in processes that should start fast. It has no effect if
the compiler or timm has already been imported.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

_COMPILER = "torch._dynamo"
_ASKED = f"{_COMPILER}.utils"


def is_compile_supported(device_type: str | torch.device | int) -> bool:
    """Stub for the function that torchvision imports. It imports the compiler when it is called."""
    from torch._dynamo.utils import is_compile_supported as of_compiler

    return bool(of_compiler(device_type))


def _unmarked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Stub for the decorator torch.compiler.disable."""
    return function


@contextmanager
def _without_compiler() -> Iterator[None]:
    if _COMPILER in sys.modules:
        yield
        return
    package, utils = ModuleType(_COMPILER), ModuleType(_ASKED)
    package.__path__ = []
    vars(utils)["is_compile_supported"] = is_compile_supported
    sys.modules |= {_COMPILER: package, _ASKED: utils}
    disable = torch.compiler.disable
    vars(torch.compiler)["disable"] = _unmarked
    try:
        yield
    finally:
        vars(torch.compiler)["disable"] = disable
        for name in (_ASKED, _COMPILER):
            sys.modules.pop(name, None)


with _without_compiler():
    import timm.data  # noqa: F401
