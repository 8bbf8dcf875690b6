"""Skip random initialization for networks that get loaded weights. It takes half of the build time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# PyTorch also dispatches functions of torch.nn.init to the mode, with the tensor as a keyword argument.
_DRAWS = frozenset(
    (
        Tensor.uniform_,
        Tensor.normal_,
        Tensor.erfinv_,
        nn.init.uniform_,
        nn.init.normal_,
        nn.init.kaiming_uniform_,
    )
)
# timm applies these to the random values.
_OF_DRAWN = frozenset((Tensor.mul_, Tensor.add_, Tensor.clamp_))


class Uninitialised(TorchFunctionMode):
    """Context in which networks are created with uninitialized weights. Use it only if every weight is
    replaced, which `models.load.fit.load_into` guarantees without ``head_may_differ``."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Skip random draws and the operations that timm applies to them; call all other functions."""
        named = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else named["tensor"]
        if func in _OF_DRAWN and isinstance(args[0], nn.Parameter):
            return args[0]
        return func(*args, **named)
