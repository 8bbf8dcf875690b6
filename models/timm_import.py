"""Import timm, and torchvision beneath it, without PyTorch's compiler (torch._dynamo).

The compiler is half of the time that importing timm takes, and nothing here uses it. Two places ask for it:
torchvision, to know whether an operator of object detection may be compiled, and timm, to mark functions of
NaFlexViT as not to be compiled. While this module is imported both get a stand-in; afterwards
`torch.compile` works as ever. Import it before timm where a process should start fast. If the compiler
or timm has been imported already, this changes nothing.
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
    """What torchvision imports by this name; the compiler answers once it is asked."""
    from torch._dynamo.utils import is_compile_supported as of_compiler

    return bool(of_compiler(device_type))


def _unmarked(function: Callable[..., Any]) -> Callable[..., Any]:
    """In place of the decorator torch.compiler.disable."""
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
