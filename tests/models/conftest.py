"""Small random networks and images that the tests of `models` share."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.clusters import add_clusters
from models.life import add_predictor
from models.paca import Paca
from models.static_attention import make_static
from models.token_pool import add_pools

MakeViT = Callable[..., VisionTransformer]

# Every axis has its own size, so that a swapped one cannot pass: grid 5 x 7, patches of 4 x 4 pixels,
# 6 heads of 11 values, 13 classes.
SMALL: dict[str, Any] = {
    "img_size": (20, 28),
    "patch_size": 4,
    "num_classes": 13,
    "embed_dim": 66,
    "num_heads": 6,
    "mlp_ratio": 1.5,
    "depth": 5,
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Networks this small are slowed by a second thread."""
    torch.set_num_threads(1)


@pytest.fixture
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def randomise() -> Callable[..., nn.Module]:
    return randomise_


@pytest.fixture(scope="session")
def give_pools() -> Callable[..., None]:
    return give_pools_


@pytest.fixture(scope="session")
def make_vit() -> MakeViT:
    """A small random ViT in evaluation mode; keyword arguments are timm's. ``life``: with a life predictor,
    also random, for that block; ``paca``: with clusters; ``static``: so many blocks with static attention;
    ``pool``: with queries for the reducer `pool` in all blocks."""

    def make(
        cls: type[VisionTransformer] = VisionTransformer,
        seed: int = 0,
        life: int | None = None,
        paca: Paca | None = None,
        static: int = 0,
        pool: bool = False,
        **changes: Any,
    ) -> Any:
        vit = cls(**{**SMALL, **changes})
        if paca is not None:
            add_clusters(tuple(vit.blocks), paca, vit.embed_dim)
        make_static(vit, static)
        vit = randomise_(vit, seed).eval()
        if life is not None:
            randomise_(add_predictor(vit, life), seed + 1)
        if pool:
            give_pools_(vit, seed + 2)
        return vit.eval()

    return make


@pytest.fixture(scope="session")
def make_pixels() -> Callable[..., Tensor]:
    def make(images: int, size: tuple[int, int] = SMALL["img_size"], seed: int = 0) -> Tensor:
        return torch.randn(images, 3, *size, generator=torch.Generator().manual_seed(seed))

    return make


def give_pools_(vit: Any, seed: int = 2) -> None:
    """Random queries, in all blocks."""
    add_pools(tuple(vit.blocks), range(len(vit.blocks)), vit.embed_dim, vit.patch_embed.grid_size)
    for index, block in enumerate(vit.blocks):
        randomise_(block.token_pool, seed + index)


def randomise_(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter values of ordinary size.

    timm starts LayerScale, CLS, register tokens and biases at or near 0; with those, a forward pass that
    forgets them would pass for right.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: Tensor, mean: float, std: float) -> None:
        parameter.copy_(mean + std * torch.randn(parameter.shape, generator=generator))

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(".attn.logits"):
                normal(parameter, 0.0, 1.5)
            elif parameter.ndim >= 2 and "token" not in name and "pos_embed" not in name:
                normal(parameter, 0.0, 1.5 * parameter[0].numel() ** -0.5)
            elif "norm" in name and name.endswith("weight"):
                normal(parameter, 1.0, 0.2)
            elif "gamma" in name:
                normal(parameter, 1.0, 0.3)
            else:
                normal(parameter, 0.0, 0.5)
    return module
