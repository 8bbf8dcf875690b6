"""The content of an infer request of the Open Inference Protocol, and its output tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from jaxtyping import UInt8
from pydantic import ValidationError

from app.decoding.image_work import ImageWork
from app.decoding.images import Data, Take
from app.errors import InvalidValue, Problem, TooLarge
from app.http.bodies.base64_images import image_or_problem
from app.http.bodies.body import EncodedImage
from app.http.bodies.content import BodyLimits
from app.http.bodies.memory import Share
from app.http.images import RequestedImage
from app.http.regions.access import Place
from app.http.routes.open_inference.outputs import OF_CLASSES, WantedOutput, outputs_by_default
from app.http.routes.open_inference.parameters import check_members, options_in, wrong_parameter
from app.http.routes.open_inference.schemas import (
    InferInput,
    InferRequest,
    InputParameters,
    OutputParameters,
    RegionParameters,
    RequestedOutput,
    TensorMetadata,
)
from app.http.routes.open_inference.tensors import allot, check_shape, image_bytes, image_pixels, parsed
from app.inference.option_layers import said
from app.inference.options import Errors, ImageOptions
from app.messages.model import ModelInfo
from app.settings.types import InputName
from app.wrong_values import no_such, short
from models.transforms import InputSpec

INPUTS = [
    TensorMetadata(name="image", datatype="BYTES", shape=[-1, 1]),
    TensorMetadata(name="pixels", datatype="UINT8", shape=[-1, -1, -1, 3]),
]
_FLOATS = ("FP16", "FP32", "FP64", "BF16")
_DATATYPES = {tensor.name: tensor.datatype for tensor in INPUTS}

_MOST_REMEMBERED, _LONGEST_REMEMBERED = 1024, 512


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """One image that arrived as pixels, and its options."""

    pixels: UInt8[np.ndarray, "rows columns 3"]
    options: ImageOptions
    share: Share

    @property
    def size(self) -> int:
        """The number of its bytes."""
        return self.pixels.nbytes

    @property
    def content(self) -> tuple[tuple[int, ...], Data]:
        """The shape and the bytes of the pixels."""
        return self.pixels.shape, self.pixels.tobytes()

    @property
    def problem(self) -> None:
        """Always None: problems are not known in advance."""

    async def decode(self, spec: InputSpec, work: ImageWork, caller: str, take: Take, /) -> tuple[str, ...]:
        """Resize it: ``take`` is called with the input of the model. There are no warnings. Raises what
        `app.decoding.images.resized` raises."""
        await work.resize(self.pixels, spec, caller, self.share.alone, take)
        return ()


@dataclass(frozen=True, slots=True)
class Inference:
    """An infer request: its images, each with the options that the outputs need, and the requested outputs.

    ``top_k``: the number of classes in the outputs label, score and index.
    """

    id: str | None
    images: Sequence[RequestedImage]
    outputs: Sequence[WantedOutput]
    top_k: int

    @property
    def logits(self) -> bool:
        """Whether an output needs the logits of all classes."""
        return any(output.name == "logits" for output in self.outputs)

    @property
    def features(self) -> bool:
        """Whether an output needs the feature vectors."""
        return any(output.name == "embedding" for output in self.outputs)


@dataclass(slots=True)
class AskedInference:
    """The JSON of a request, as far as it can be read without knowing the model. Identical requests may share
    it."""

    request: InferRequest
    options: ImageOptions
    _of_model: tuple[ModelInfo, "_OfModel"] | None = None

    def of(self, model: ModelInfo) -> "_OfModel":
        """The request for this model, cached for one model. Raises InvalidValue."""
        if self._of_model is None or self._of_model[0] is not model:
            self._of_model = model, _of_model(self.request, self.options, model)
        return self._of_model[1]

    @property
    def places(self) -> list[Place]:
        """The places of its data in shared memory: first that of the input, if it is there. Raises
        InvalidValue."""
        found = [_place(each.parameters, f"the input {each.name}") for each in self.request.inputs]
        found += [_place(each.parameters, f"the output {each.name}") for each in self.request.outputs]
        return [place for place in found if place is not None]

    @property
    def input_place(self) -> Place | None:
        """The place of the input's data in shared memory, if it is there. Raises InvalidValue."""
        (given,) = self.request.inputs
        return _place(given.parameters, f"the input {given.name}")

    def options_of_each(self, limits: BodyLimits) -> list[ImageOptions]:
        """The options, once for each image that the JSON announces, up to the allowed number."""
        return [self.options] * max(1, min(self.request.inputs[0].shape[0], limits.images))


@dataclass(frozen=True, slots=True)
class _OfModel:
    """A request to one model: outputs, the ``top_k`` classes in label, score and index, and the options that
    the outputs need, for every image."""

    outputs: Sequence[WantedOutput]
    top_k: int
    options: ImageOptions


def asked_inference(head: bytes | bytearray, header_length: str | None) -> AskedInference:
    """The JSON of a request, checked. Clients that send tensors as binary data send the same JSON repeatedly,
    so the result is cached if it is short. Raises InvalidValue, and what `parsed` raises."""
    if len(head) <= _LONGEST_REMEMBERED:
        return _asked_lately(bytes(head), header_length)
    return _asked_inference(parsed(head, header_length))


@lru_cache(_MOST_REMEMBERED)
def _asked_lately(head: bytes, header_length: str | None) -> AskedInference:
    return _asked_inference(parsed(head, header_length))


def _asked_inference(document: Any) -> AskedInference:
    try:
        request = InferRequest.model_validate(document)
    except ValidationError as error:
        _refuse_floats(document)
        raise InvalidValue(said(error, InferRequest)) from error
    check_members(document)
    return AskedInference(request, options_in(request.parameters))


def _refuse_floats(document: Any) -> None:
    """Raises InvalidValue for pixels that the client has made ready for a network."""
    inputs = document.get("inputs") if isinstance(document, dict) else None
    for given in inputs if isinstance(inputs, list) else ():
        if isinstance(given, dict) and given.get("name") == "pixels" and given.get("datatype") in _FLOATS:
            raise InvalidValue(
                f"the input pixels has the datatype {given['datatype']}; allowed is UINT8: send the "
                "photograph's own pixels (0 to 255), which the server resizes and normalizes itself"
            )


def check_input(request: InferRequest, only: InputName | None) -> None:
    """Raises InvalidValue for an input that the server does not offer."""
    (given,) = request.inputs
    if only not in (None, given.name):
        raise InvalidValue(
            f"this server does not accept the input {given.name}, only {only} (--open-inference-input)"
        )


def read_inference(
    asked: AskedInference,
    binary: memoryview,
    limits: BodyLimits,
    model: ModelInfo,
    share: Share,
    elsewhere: bytearray | None = None,
) -> Inference:
    """The images and outputs of a request to this model, with the binary data after its JSON, or with the
    input's data from ``elsewhere``. Copies of its pixels are counted in ``share``.

    Raises InvalidValue, TooLarge, or UnreadableRequest for invalid base64.
    """
    of_model = asked.of(model)
    (given,) = asked.request.inputs
    _only_known(given.parameters, f"the input {given.name}")
    if elsewhere is not None and (given.parameters.binary_data_size is not None or given.data is not None):
        raise InvalidValue(
            f"the input {given.name} has both shared memory and data or binary_data_size; only one is allowed"
        )
    (data,) = allot([given.parameters.binary_data_size], binary)
    if elsewhere is not None:
        data = memoryview(elsewhere)
    images = _images(given, data, of_model.options, limits, share)
    return Inference(asked.request.id, images, of_model.outputs, of_model.top_k)


def _of_model(request: InferRequest, options: ImageOptions, model: ModelInfo) -> _OfModel:
    outputs = _wanted(request, model, options.errors)
    top_k = min(options.top_k, len(model.labels))
    most = max([top_k, *(output.classes for output in outputs if output.name == "score")])
    if not model.labels and any(output.name in OF_CLASSES for output in outputs):
        most = 1  # a valid value; the request is rejected with a clear error later
    kept_patches = any(output.name == "kept_patches" for output in outputs)
    needed = options.model_copy(update={"top_k": most, "mask": "indices" if kept_patches else "none"})
    return _OfModel(outputs, top_k, needed)


def _wanted(request: InferRequest, model: ModelInfo, errors: Errors) -> list[WantedOutput]:
    by_default = request.parameters.get("binary_data_output")
    if by_default is None:
        by_default = False
    if type(by_default) is not bool:
        raise wrong_parameter("binary_data_output", by_default)
    asked = request.outputs or [RequestedOutput(name=name) for name in outputs_by_default(model, errors)]
    wanted: list[WantedOutput] = []
    for output in asked:
        _only_known(output.parameters, f"the output {output.name}")
        if any(other.name == output.name for other in wanted):
            raise InvalidValue(f"the output {output.name} is requested more than once")
        classes = min(output.parameters.classification, len(model.labels))
        if classes and output.name not in ("score", "logits"):
            raise InvalidValue(
                f"classification is not available for the output {output.name}, only for score and logits"
            )
        binary = output.parameters.binary_data
        place = _place(output.parameters, f"the output {output.name}")
        wanted.append(WantedOutput(output.name, by_default if binary is None else binary, classes, place))
    return wanted


def _place(parameters: RegionParameters, of: str) -> Place | None:
    """Raises InvalidValue if a part of it is missing."""
    if parameters.shared_memory_region is None:
        if parameters.shared_memory_byte_size is not None or parameters.shared_memory_offset:
            raise InvalidValue(f"{of} has shared memory parameters, but no shared_memory_region")
        return None
    if parameters.shared_memory_byte_size is None:
        raise InvalidValue(f"{of} has a shared_memory_region, but no shared_memory_byte_size")
    return Place(
        parameters.shared_memory_region, parameters.shared_memory_offset, parameters.shared_memory_byte_size
    )


def _only_known(parameters: InputParameters | OutputParameters, of: str) -> None:
    """Raises InvalidValue for a parameter that is not declared."""
    for name in parameters.model_extra or {}:
        raise InvalidValue(f"{of}: " + no_such("parameter", name, type(parameters).model_fields))


def _images(
    given: InferInput, binary: memoryview | None, options: ImageOptions, limits: BodyLimits, share: Share
) -> list[RequestedImage]:
    if given.datatype != _DATATYPES[given.name]:
        raise InvalidValue(
            f"the input {given.name} has the datatype {given.datatype}; allowed is {_DATATYPES[given.name]}"
        )
    if binary is not None and given.data is not None:
        raise InvalidValue(f"the input {given.name} has both data and binary_data_size; only one is allowed")
    if given.name == "pixels":
        check_shape(given.shape)
    if given.shape[0] > limits.images:
        raise TooLarge(
            f"the request has {short.repr(given.shape[0])} images; at most {limits.images} are allowed"
        )
    if given.name == "image":
        read = partial(image_or_problem, name="data of the input image", each=options.errors == "each")
        encoded = image_bytes(given.shape, given.data, binary, read)
        return [
            EncodedImage(b"", options, data) if isinstance(data, Problem) else EncodedImage(data, options)
            for data in encoded
        ]
    return [DecodedImage(pixels, options, share) for pixels in image_pixels(given.shape, given.data, binary)]
