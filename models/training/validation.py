"""Validation after an epoch, on images that are not used for training."""

from collections.abc import Sequence
from pathlib import Path

import torch

from models.load import Card
from models.normalise import normalise
from models.pruned_vit import PrunedViT
from models.schedule import Pruning
from models.training.config import TrainConfig
from models.training.data import Sample
from models.training.labelled import samples_for
from models.training.loading import BrokenImages, evaluation_batches


class Validation:
    """Measures top-1 on a folder of labelled images at several keep ratios. Raises FolderError and
    ClassesError."""

    def __init__(self, folder: Path, card: Card, config: TrainConfig) -> None:
        self.samples: list[Sample] = samples_for(card, folder)
        self._spec, self._config = card.input, config

    @torch.inference_mode()
    def top1(self, model: PrunedViT) -> dict[float, float]:
        """Return top-1 accuracy by keep ratio, as a share. Images that cannot be read are not counted."""
        config = self._config
        spec = self._spec
        device = next(model.parameters()).device
        right = dict.fromkeys(config.validation_keep_ratios, 0)
        images = 0
        broken = BrokenImages(config.broken_images)
        batches = evaluation_batches(
            self.samples, spec, broken, batch_size=config.batch_size, workers=config.workers
        )
        was_training = model.training
        model.eval()
        for batch in batches:
            if len(batch.numbers) == 0:
                continue
            inputs = normalise(torch.from_numpy(batch.pixels).to(device), spec, torch.float32)
            truth = torch.from_numpy(batch.truth).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bf16):
                for ratio in right:
                    logits = model(inputs, self._prunings(ratio, len(inputs))).logits
                    right[ratio] += int((logits.argmax(1) == truth).sum())
            images += len(inputs)
        broken.tell(of=len(self.samples))
        model.train(was_training)
        return {ratio: count / images for ratio, count in right.items()}

    def _prunings(self, ratio: float, images: int) -> Sequence[Pruning]:
        return [Pruning(ratio, self._config.criteria[0], self._config.reducers[0])] * images
