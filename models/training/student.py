"""Build the network that a run trains."""

from collections.abc import Sequence

import torch

from models.clusters import is_of_clusters
from models.life import NAME as LIFE
from models.load import HEADS, Start, create
from models.pruned_vit import PrunedViT
from models.stage_blocks import stages_of
from models.static_attention import is_static_logits, make_static
from models.token_pool import is_of_pool
from models.training.config import TrainConfig
from models.training.data import Sample
from models.training.freezing import freeze_first_blocks
from models.training.life import give_predictor
from models.training.loading import BrokenImages
from models.training.paca import give_clusters, paca_named
from models.training.pool import give_pools
from models.training.static import give_static, inherit


def student_of(
    config: TrainConfig,
    classes: int,
    samples: Sequence[Sample],
    broken: BrokenImages,
    device: str,
    *,
    resumes: bool,
) -> tuple[Start, PrunedViT]:
    """Create the network with everything that the settings add to it, and mark the parameters to train.

    ``resumes``: whether its weights will come from a resume state. Raises ModelError if the weights do not
    fit, and ValueError for settings that contradict each other.
    """
    torch.manual_seed(config.seed)  # for the initialization of a new head
    start = create(
        config.architecture,
        config.weights,
        patch_stride=config.patch_stride,
        num_classes=classes,
        img_size=config.image_size,
        drop_path_rate=config.drop_path,
    )
    stages = PrunedViT(start.vit, start.stages).stages
    depth = len(start.vit.blocks)
    if config.stages is not None:
        stages = stages_of(config.stages, None, stages, depth)
    if config.life:
        give_predictor(start, stages)
    if config.paca_blocks is not None:
        paca = paca_named(config.paca_blocks, config.paca_clusters, stages, depth)
        give_clusters(start, paca, config.frozen_blocks)
    if "pool" in config.reducers:
        give_pools(start, stages, config.frozen_blocks)
    vit = start.vit.to(device)
    static = give_static(start, config.static_blocks, stages)
    if resumes:
        make_static(vit, config.static_blocks)
    else:
        inherit(start, static, samples, broken, config.workers)
    heads = (*HEADS, f"{LIFE}.")
    for name, parameter in vit.named_parameters():
        new = name.startswith(heads) or is_of_clusters(name) or is_static_logits(name) or is_of_pool(name)
        parameter.requires_grad_(config.trained == "all" or new)
    model = PrunedViT(vit, stages)
    freeze_first_blocks(model, config.frozen_blocks)
    return start, model.train()
