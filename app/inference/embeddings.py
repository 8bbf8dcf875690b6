"""The result of one image whose embedding is requested, and many embeddings as bytes."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from app.inference.options import EmbedOptions
from app.inference.results import image_result
from app.messages.image import Ask, Lowered, Prediction
from app.messages.model import ModelInfo

_SHORTEST = 1e-12  # the minimum length to divide by, as in torch.nn.functional.normalize


def embedding_result(
    prediction: Prediction,
    model: ModelInfo,
    *,
    options: EmbedOptions,
    ask: Ask,
    lowered: Lowered | None = None,
    picture: UInt8[np.ndarray, "height width 3"] | None,
    warnings: Sequence[str],
    cached: bool = False,
) -> dict[str, Any]:
    """One EmbedResult of the schemas, as plain data. The parameters are those of `image_result`."""
    vector = embedding_of(prediction, normalize=options.normalize)
    result = image_result(
        prediction,
        model,
        options=options,
        ask=ask,
        lowered=lowered,
        picture=picture,
        warnings=warnings,
        cached=cached,
    )
    if not options.top_k:
        del result["labels"]
    as_text = options.encoding == "base64"
    return {
        "embedding": base64.b64encode(vector.tobytes()).decode() if as_text else vector.tolist(),
        **result,
    }


def embedding_of(prediction: Prediction, *, normalize: bool) -> Float32[np.ndarray, " features"]:
    """The feature vector, little-endian, divided by its length (L2) if that is requested."""
    vector = prediction.feature_vector
    assert vector is not None, "it was asked for"
    if not normalize:
        return vector
    length = max(float(np.linalg.norm(vector.astype(np.float64))), _SHORTEST)
    return (vector / length).astype("<f4")
