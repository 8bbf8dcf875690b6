"""The identity of a training run: the fingerprint for resuming, and the card of its checkpoint."""

from models.load import Card, Start
from models.pruned_vit import PrunedViT
from models.training.config import TrainConfig
from models.training.data import Sample
from models.training.resuming import digest_of_names


def fingerprint(
    config: TrainConfig, classes: tuple[str, ...], labels: tuple[str, ...], samples: list[Sample]
) -> dict[str, object]:
    """Return everything that must not change when a run is resumed. Paths, the device and how images are read
    may change."""
    left_out = {"data", "labels", "workers", "broken_images", "save_every", "output", "device", "track"}
    # Runs that were started before these settings existed can still be resumed.
    if config.stages is None:
        left_out.add("stages")
    if config.frozen_blocks == 0:
        left_out.add("frozen_blocks")
    if config.cached_views == 0:
        left_out.add("cached_views")
    if not config.life:
        left_out.add("life")
    if config.paca_blocks is None:
        left_out |= {"paca_blocks", "paca_clusters"}
    if config.static_blocks == 0:
        left_out.add("static_blocks")
    return {
        **config.model_dump(mode="json", exclude=left_out),
        "classes": list(classes),
        "labels": list(labels),
        "images": digest_of_names((path for path, _ in samples), config.data),
    }


def card_of(
    config: TrainConfig,
    model: PrunedViT,
    classes: tuple[str, ...],
    labels: tuple[str, ...],
    start: Start,
) -> Card:
    """Build the card of the checkpoint. Its origin has the settings, without paths and devices."""
    left_out = {
        *("data", "output", "weights", "labels", "teacher", "validation_data"),
        *("broken_images", "device", "track"),
    }
    return Card(
        architecture=config.architecture,
        labels=labels,
        input=start.input,
        stages=model.stages,
        criterion=config.criteria[0],
        reducer=config.reducers[0],
        model_args={**start.model_args, "num_classes": len(classes), "img_size": config.image_size},
        patch_stride=config.patch_stride,
        life_block=model.stages.blocks[0] if config.life else None,
        paca=model.arch.paca,
        static_blocks=model.arch.static_blocks,
        pool_blocks=model.stages.blocks if "pool" in config.reducers else None,
        origin=config.model_dump(mode="json", exclude=left_out),
        folders=classes,
    )
