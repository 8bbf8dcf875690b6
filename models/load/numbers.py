"""Reject networks with weights or scores that are NaN or infinite."""

import torch

from models.families import Network
from models.finite import all_finite
from models.load.errors import ModelError


def refuse_non_finite(vit: Network, name: str) -> None:
    """Raise ModelError if weights are NaN or infinite, or if the scores for a noise image are.

    Weights from files are also checked when they are read; weights from the hub are only checked here. Finite
    weights can still be so large that the scores overflow.
    """
    for tensor_name, tensor in vit.state_dict().items():
        if not all_finite(tensor):
            raise ModelError(
                f"{name} is not served: {tensor_name} has values that are NaN or infinite; use an earlier "
                "checkpoint"
            )
    convolution = vit.patch_embed.proj
    height, width = vit.patch_embed.img_size
    was_training = vit.training
    noise = torch.randn(1, convolution.in_channels, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        scores = vit.eval()(noise)
    vit.train(was_training)
    if not torch.isfinite(scores).all():
        largest = max(vit.state_dict().items(), key=lambda item: item[1].abs().max().item())[0]
        raise ModelError(
            f"{name} is not served: its scores for noise are NaN or infinite, although its weights "
            f"are not ({largest} has the largest); the file is corrupt, or its training diverged"
        )
