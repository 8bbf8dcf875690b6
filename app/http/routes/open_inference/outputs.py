"""The outputs of an inference: what there is to ask for, and the tensors that answer it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from app.http.images import AnsweredImage
from app.http.regions.access import Access, Place
from app.http.routes.open_inference.schemas import OutputName, TensorMetadata
from app.http.routes.open_inference.tensors import Datatype, OutputTensor, PutElsewhere
from app.inference.embeddings import embedding_of
from app.messages.model import ModelInfo
from models.pictures import cells_of

_DATATYPES: dict[OutputName, Datatype] = {
    "label": "BYTES",
    "score": "FP32",
    "index": "INT32",
    "logits": "FP32",
    "kept_patches": "BOOL",
    "keep_ratio": "FP32",
    "compute": "FP32",
    "embedding": "FP32",
}
OF_CLASSES: tuple[OutputName, ...] = ("label", "score", "index", "logits")


def outputs_of(model: ModelInfo) -> list[TensorMetadata]:
    """The outputs that a request can ask for: of a model without a head, none about classes."""
    lengths: dict[OutputName, list[int]] = {
        "label": [-1],
        "score": [-1],
        "index": [-1],
        "logits": [len(model.labels)],
        "kept_patches": [len(model.method.stages.blocks), *model.architecture.grid],
        "keep_ratio": [1],
        "compute": [1],
        "embedding": [model.features],
    }
    return [
        TensorMetadata(name=name, datatype=datatype, shape=[-1, *lengths[name]])
        for name, datatype in _DATATYPES.items()
        if model.labels or name not in OF_CLASSES
    ]


def outputs_by_default(model: ModelInfo) -> list[OutputName]:
    """What a request gets that names no outputs: an embedding only where there are no classes, for it is
    larger than all else."""
    names: list[OutputName] = [name for name in _DATATYPES if (name in OF_CLASSES) <= bool(model.labels)]
    return [name for name in names if name != "embedding" or not model.labels]


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output and how it is wanted. ``classes``: so many as `value:index:label`; 0: the numbers.
    ``place``: where in shared memory."""

    name: OutputName
    binary: bool
    classes: int
    place: Place | None = None


def output_tensors(
    outputs: Sequence[WantedOutput],
    top_k: int,
    answered: Sequence[AnsweredImage],
    model: ModelInfo,
    access: Access | None = None,
) -> list[tuple[OutputTensor, bool | PutElsewhere]]:
    """The outputs that were asked for, each with whether it is wanted as binary data, or how it is put into
    shared memory by ``access``. ``top_k``: classes in the outputs label, score and index."""
    return [
        (
            _classified(output, answered, model)
            if output.classes
            else _plain(output.name, answered, model, top_k),
            output.binary
            if output.place is None or access is None
            else partial(access.write, output.name, output.place),
        )
        for output in outputs
    ]


def _plain(name: OutputName, answered: Sequence[AnsweredImage], model: ModelInfo, top_k: int) -> OutputTensor:
    images = len(answered)
    values: np.ndarray
    match name:
        case "label":
            texts = [
                model.labels[index] for image in answered for index in image.answer.prediction.classes[:top_k]
            ]
            return OutputTensor(name, _DATATYPES[name], (images, top_k), texts)
        case "score":
            values = np.array([image.answer.prediction.scores[:top_k] for image in answered], np.float32)
        case "index":
            values = np.array([image.answer.prediction.classes[:top_k] for image in answered], np.int32)
        case "logits":
            values = np.stack([_logits(image) for image in answered])
        case "kept_patches":
            grid = model.architecture.grid
            values = np.array(
                [
                    [cells_of(stage, grid) for stage in image.answer.prediction.kept_patches]
                    for image in answered
                ],
                bool,
            ).reshape(images, len(model.method.stages.blocks), *grid)
        case "keep_ratio":
            values = np.array([[image.answer.prediction.keep_ratio] for image in answered], np.float32)
        case "compute":
            values = np.array([[image.answer.prediction.compute] for image in answered], np.float32)
        case "embedding":
            values = np.stack([embedding_of(image.answer.prediction, normalize=False) for image in answered])
    return OutputTensor(name, _DATATYPES[name], values.shape, values)


def _classified(output: WantedOutput, answered: Sequence[AnsweredImage], model: ModelInfo) -> OutputTensor:
    """Triton's classification extension: the best classes as `value:index:label`."""
    values: Callable[[AnsweredImage], Sequence[tuple[int, float]]] = (
        _best_logits if output.name == "logits" else _best_scores
    )
    texts = [
        f"{value:f}:{index}:{model.labels[index]}"
        for image in answered
        for index, value in values(image)[: output.classes]
    ]
    return OutputTensor(output.name, "BYTES", (len(answered), output.classes), texts)


def _best_scores(image: AnsweredImage) -> list[tuple[int, float]]:
    prediction = image.answer.prediction
    return list(zip(prediction.classes, prediction.scores, strict=True))


def _best_logits(image: AnsweredImage) -> list[tuple[int, float]]:
    logits = _logits(image)
    return [(int(index), float(logits[index])) for index in np.argsort(-logits, kind="stable")]


def _logits(image: AnsweredImage) -> np.ndarray:
    logits = image.answer.prediction.all_logits
    assert logits is not None, "they were asked for"
    return logits
