"""The outputs of an inference: what there is to ask for, and the tensors that answer it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from app.http.classification import AnsweredImage
from app.http.routes.open_inference.schemas import OutputName, TensorMetadata
from app.http.routes.open_inference.tensors import OutputTensor
from app.messages.model import ModelInfo
from models.pictures import cells_of


def outputs_of(model: ModelInfo) -> list[TensorMetadata]:
    """The outputs that a request can ask for, all of which it gets where it names none."""
    arch, stages = model.architecture, model.method.stages.blocks
    return [
        TensorMetadata(name="label", datatype="BYTES", shape=[-1, -1]),
        TensorMetadata(name="score", datatype="FP32", shape=[-1, -1]),
        TensorMetadata(name="index", datatype="INT32", shape=[-1, -1]),
        TensorMetadata(name="logits", datatype="FP32", shape=[-1, len(model.labels)]),
        TensorMetadata(name="kept_patches", datatype="BOOL", shape=[-1, len(stages), *arch.grid]),
        TensorMetadata(name="keep_ratio", datatype="FP32", shape=[-1, 1]),
        TensorMetadata(name="compute", datatype="FP32", shape=[-1, 1]),
    ]


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output and how it is wanted. ``classes``: so many as `value:index:label`; 0: the numbers."""

    name: OutputName
    binary: bool
    classes: int


def output_tensors(
    outputs: Sequence[WantedOutput], top_k: int, answered: Sequence[AnsweredImage], model: ModelInfo
) -> list[tuple[OutputTensor, bool]]:
    """The outputs that were asked for, each with whether it is wanted as binary data. ``top_k``: classes in
    the outputs label, score and index."""
    return [
        (
            _classified(output, answered, model)
            if output.classes
            else _plain(output.name, answered, model, top_k),
            output.binary,
        )
        for output in outputs
    ]


def _plain(name: OutputName, answered: Sequence[AnsweredImage], model: ModelInfo, top_k: int) -> OutputTensor:
    described = next(tensor for tensor in outputs_of(model) if tensor.name == name)
    values: np.ndarray | list[str]
    match name:
        case "label":
            values = [
                model.labels[index] for image in answered for index in image.answer.prediction.classes[:top_k]
            ]
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
            )
        case "keep_ratio":
            values = np.array([image.answer.prediction.keep_ratio for image in answered], np.float32)
        case "compute":
            values = np.array([image.answer.prediction.compute for image in answered], np.float32)
    lengths = [top_k if length < 0 else length for length in described.shape[1:]]
    return OutputTensor(name, described.datatype, (len(answered), *lengths), values)


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
