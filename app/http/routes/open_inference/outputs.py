"""The outputs of an inference: which can be requested, and their tensors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from app.errors import Problem
from app.http.answers import problem_json
from app.http.images import AnsweredImage
from app.http.regions.access import Access, Place
from app.http.routes.open_inference.schemas import OutputName, TensorMetadata
from app.http.routes.open_inference.tensors import NUMBERS, Datatype, OutputTensor, PutElsewhere
from app.inference.embeddings import embedding_of
from app.inference.options import Errors
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
    "error": "BYTES",
}
OF_CLASSES: tuple[OutputName, ...] = ("label", "score", "index", "logits")


def outputs_of(model: ModelInfo) -> list[TensorMetadata]:
    """The outputs that a request can name. A model without a head has none about classes."""
    lengths: dict[OutputName, list[int]] = {
        "label": [-1],
        "score": [-1],
        "index": [-1],
        "logits": [len(model.labels)],
        "kept_patches": [len(model.method.stages.blocks), *model.architecture.grid],
        "keep_ratio": [1],
        "compute": [1],
        "embedding": [model.features],
        "error": [1],
    }
    return [
        TensorMetadata(name=name, datatype=datatype, shape=[-1, *lengths[name]])
        for name, datatype in _DATATYPES.items()
        if model.labels or name not in OF_CLASSES
    ]


def outputs_by_default(model: ModelInfo, errors: Errors) -> list[OutputName]:
    """The outputs of a request that names none. The embedding, which is larger than all others, is only
    included if there are no classes, and errors only if each image is to be answered."""
    left_out: set[OutputName] = {"embedding"} if model.labels else set(OF_CLASSES)
    if errors == "first":
        left_out.add("error")
    return [name for name in _DATATYPES if name not in left_out]


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """A requested output. ``classes``: the number of classes as `value:index:label`; 0: the numbers.
    ``place``: where in shared memory."""

    name: OutputName
    binary: bool
    classes: int
    place: Place | None = None


def output_tensors(
    outputs: Sequence[WantedOutput],
    top_k: int,
    ended: Sequence[AnsweredImage | Problem],
    model: ModelInfo,
    access: Access | None = None,
) -> list[tuple[OutputTensor, bool | PutElsewhere]]:
    """The requested outputs, each with whether it is returned as binary data, or how it is written into
    shared memory by ``access``. ``top_k``: the number of classes in the outputs label, score and index."""
    return [
        (
            _tensor(output, ended, model, top_k),
            output.binary
            if output.place is None or access is None
            else partial(access.write, output.name, output.place),
        )
        for output in outputs
    ]


def _tensor(
    output: WantedOutput, ended: Sequence[AnsweredImage | Problem], model: ModelInfo, top_k: int
) -> OutputTensor:
    if output.name == "error":
        problems = [problem_json(image).decode() if isinstance(image, Problem) else "" for image in ended]
        return OutputTensor("error", "BYTES", (len(ended), 1), problems)
    answered = [image for image in ended if not isinstance(image, Problem)]
    if not answered:
        return _of_no_answers(output, len(ended), model, top_k)
    tensor = (
        _classified(output, answered, model)
        if output.classes
        else _plain(output.name, answered, model, top_k)
    )
    if len(answered) == len(ended):
        return tensor
    places = [place for place, image in enumerate(ended) if not isinstance(image, Problem)]
    return _spread(tensor, places, _of_no_answers(output, len(ended), model, top_k))


def _of_no_answers(output: WantedOutput, images: int, model: ModelInfo, top_k: int) -> OutputTensor:
    """What stands in the output for images that have problems."""
    (described,) = (each for each in outputs_of(model) if each.name == output.name)
    last = output.classes or top_k
    shape = (images, *(last if output.classes or length < 0 else length for length in described.shape[1:]))
    if output.classes or described.datatype == "BYTES":
        return OutputTensor(output.name, "BYTES", shape, [""] * math.prod(shape))
    values = np.full(shape, -1 if output.name == "index" else 0, NUMBERS[described.datatype])
    return OutputTensor(output.name, described.datatype, shape, values)


def _spread(tensor: OutputTensor, places: Sequence[int], empty: OutputTensor) -> OutputTensor:
    """The tensor's rows at these places of the empty one."""
    values = np.array(empty.values, object if empty.datatype == "BYTES" else None).reshape(empty.shape)
    values[list(places)] = np.asarray(tensor.values).reshape(tensor.shape)
    flat = values.ravel().tolist() if empty.datatype == "BYTES" else values
    return OutputTensor(tensor.name, tensor.datatype, empty.shape, flat)


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
        case "error":
            raise AssertionError("it is of all images")
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
