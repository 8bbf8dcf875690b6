"""Loads the model of the settings, and describes it. It imports torch: for the worker's process only."""

import hashlib
import logging

import torch

from app.messages.model import ModelInfo
from app.settings.settings import Settings
from models.image_sizes import pixels_of
from models.load import LoadedModel, load, read_labels

log = logging.getLogger(__name__)


def load_model(settings: Settings, reference: str | None = None) -> LoadedModel:
    """The model of that reference, or the default one of the settings, with the settings' head, labels,
    stages, rows, stride and input size in place of the checkpoint's.

    Raises as `models.load.load` does, and ModelError for a file of labels that cannot be read.
    """
    labels = None if settings.labels is None else read_labels(settings.labels)
    loaded = load(
        reference or settings.models[0].reference,
        architecture=settings.architecture,
        labels=labels,
        patch_stride=settings.patch_stride,
        input_size=pixels_of(settings.input_size),
        headless=True,
        head=settings.head,
    )
    served = loaded.at_stages(settings.stages, settings.rows)
    if loaded.cascade is not None and served.cascade is None:
        log.warning("%s is served without its cascade, which was fitted for other stages", loaded.name)
    return served


def check_defaults(settings: Settings, loaded: LoadedModel) -> None:
    """Raises ValueError if the model does not support its default criterion or reducer in the settings."""
    own = settings.own_defaults(loaded.name)
    criterion, reducer = own.criterion or settings.default_criterion, own.reducer or settings.default_reducer
    if criterion is not None:
        loaded.check_criteria([criterion])
    if reducer is not None:
        loaded.check_reducers([reducer])


def fingerprint(network: torch.nn.Module) -> str:
    """A digest of all weights and their names: other weights have another one."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def describe(loaded: LoadedModel, device: str, dtype: torch.dtype) -> ModelInfo:
    """The description of the model for a front end. Logs a warning about a cascade that was fitted in another
    dtype."""
    served = str(dtype).removeprefix("torch.")
    if loaded.cascade is not None and loaded.cascade.dtype not in (None, served):
        log.warning(
            "the cascade of %s was fitted in %s but is served in %s: its agreement of %g is not guaranteed",
            *(loaded.name, loaded.cascade.dtype, served, loaded.cascade.agreement),
        )
    return ModelInfo(
        name=loaded.name,
        labels=loaded.labels,
        input=loaded.input,
        architecture=loaded.model.arch,
        method=loaded.method,
        cascade=loaded.cascade,
        patch_size=loaded.model.vit.patch_embed.proj.kernel_size,
        patch_stride=loaded.model.vit.patch_embed.proj.stride,
        device=device,
        dtype=served,
        scores=loaded.scores,
        features=loaded.model.feature_width,
        criteria=loaded.model.criteria,
        reducers=loaded.model.reducers,
    )
