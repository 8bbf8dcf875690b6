"""Networks built for weights that come at once: drawing random ones first is half of the time of building."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# PyTorch passes the functions of torch.nn.init on by themselves, with the tensor under its name.
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
# What timm does with what was drawn.
_OF_DRAWN = frozenset((Tensor.mul_, Tensor.add_, Tensor.clamp_))


class Uninitialised(TorchFunctionMode):
    """Within it a network's weights are whatever lay in memory. To be used only where each of them is
    replaced, as `models.load.fit.load_into` makes sure without ``head_may_differ``."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Nothing is drawn, or brought into shape where it would have been drawn; everything else is done."""
        named = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else named["tensor"]
        if func in _OF_DRAWN and isinstance(args[0], nn.Parameter):
            return args[0]
        return func(*args, **named)
