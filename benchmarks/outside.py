"""Run the unpruned network in other runtimes, converted from the same timm module. Needs the `bench`
extra."""

import logging
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from benchmarks.rounds import Contestant

_PACKAGES = ("openvino", "nncf", "onnxruntime", "onnx", "onnxscript")

# Maximum difference from timm's logits, relative to the largest logit.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.3}

# Maximum number of batches on which NNCF calibrates the ranges of activations.
_CALIBRATION_BATCHES = 4


class MissingPackageError(RuntimeError):
    """A package of the `bench` extra is not installed."""


def missing_packages() -> list[str]:
    """Return the runtimes and exporters that are not installed."""
    return [name for name in _PACKAGES if find_spec(name) is None]


def require_packages() -> None:
    """Raise MissingPackageError unless all runtimes and exporters are installed."""
    if missing := missing_packages():
        raise MissingPackageError(
            f"not installed: {', '.join(missing)}; the outside references need the bench extra: "
            "pip install -e '.[bench]'"
        )


def references(vit: VisionTransformer, batches: Sequence[Tensor]) -> dict[str, Contestant]:
    """Build contestants for OpenVINO (float32, bfloat16, int8) and ONNX Runtime (float32, int8), for batches
    of one size on all cores. ``vit`` and ``batches`` are float32 on the CPU.

    OpenVINO int8 uses static quantization: NNCF calibrates one activation range per layer on the first
    ``batches``, and other operations use the fastest dtype of the CPU. ONNX Runtime int8 uses dynamic
    quantization, with activation ranges computed for each batch. Raises RuntimeError if the logits of a
    runtime differ from timm's by more than rounding.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(vit, (batches[0],))
        openvino, onnx = _from_openvino(exported, batches[0]), _to_onnx(exported)
        found = {
            "OpenVINO float32": _openvino(openvino, {"INFERENCE_PRECISION_HINT": "f32"}, batches),
            "OpenVINO bfloat16": _openvino(openvino, {"INFERENCE_PRECISION_HINT": "bf16"}, batches),
            "OpenVINO int8": _openvino(_quantised_by_nncf(openvino, batches), {}, batches),
            "ONNX Runtime float32": _onnxruntime(onnx, batches),
            "ONNX Runtime int8": _onnxruntime(_quantised_by_onnxruntime(onnx), batches),
        }
    for name, contestant in found.items():
        _check(name, contestant, vit, batches[0])
    return found


def _from_openvino(exported: torch.export.ExportedProgram, pixels: Tensor) -> Any:
    # OpenVINO's converter sends telemetry about each use unless this package is missing.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    model = openvino.convert_model(exported)
    model.reshape(list(pixels.shape))
    return model


def _quantised_by_nncf(model: Any, batches: Sequence[Tensor]) -> Any:
    import nncf

    arrays = [batch.numpy() for batch in batches[:_CALIBRATION_BATCHES]]
    return nncf.quantize(
        model, nncf.Dataset(arrays), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(arrays)
    )


def _openvino(model: Any, settings: dict[str, str], batches: Sequence[Tensor]) -> Contestant:
    import openvino

    settings = settings | {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",  # all threads on one batch
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    arrays = [batch.numpy() for batch in batches]

    def run(turn: int) -> np.ndarray:
        return request.infer([arrays[turn % len(arrays)]], share_inputs=True, share_outputs=True)[0]

    return Contestant(len(arrays[0]), run)


def _to_onnx(exported: torch.export.ExportedProgram) -> bytes:
    logging.getLogger("onnxscript").setLevel(logging.WARNING)
    program = torch.onnx.export(exported, input_names=["pixels"], dynamo=True, verbose=False)
    assert program is not None
    serialized: bytes = program.model_proto.SerializeToString()
    return serialized


def _quantised_by_onnxruntime(model: bytes) -> bytes:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory() as folder:
        given, quantised = Path(folder, "given.onnx"), Path(folder, "quantised.onnx")
        given.write_bytes(model)
        quantize_dynamic(given, quantised, per_channel=True, weight_type=QuantType.QInt8)
        return quantised.read_bytes()


def _onnxruntime(model: bytes, batches: Sequence[Tensor]) -> Contestant:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    arrays = [batch.numpy() for batch in batches]

    def run(turn: int) -> np.ndarray:
        return session.run(None, {"pixels": arrays[turn % len(arrays)]})[0]

    return Contestant(len(arrays[0]), run)


@torch.inference_mode()
def _check(name: str, contestant: Contestant, vit: VisionTransformer, pixels: Tensor) -> None:
    expected = vit(pixels).numpy()
    difference = np.abs(contestant.run(0) - expected).max() / np.abs(expected).max()
    tolerance = _TOLERANCE[name.split()[-1]]
    if not difference <= tolerance:
        raise RuntimeError(
            f"the logits of {name} differ from timm's by {difference:.2g} of the largest; "
            f"at most {tolerance:g} is a matter of rounding"
        )
