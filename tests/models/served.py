"""How near the logits that are served at keep ratio 1 come to timm's."""

from copy import deepcopy

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.classifier import Classifier
from models.device import input_dtype
from models.load import input_spec_of
from models.pruned_vit import PrunedViT
from models.schedule import UNPRUNED

# The norm of the difference of all logits, as a share of the norm of timm's. docs/performance.md says so.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.int8: 0.1}


def difference_from_timm(vit: VisionTransformer | Eva, pixels: Tensor, dtype: torch.dtype) -> float:
    """Of what a classifier in ``dtype`` computes at keep ratio 1 to what timm computes in the same dtype (for
    int8, which timm does not have: in that between the int8 layers), as a share."""
    timms = deepcopy(vit).to(input_dtype("cpu", dtype))
    classifier = Classifier(PrunedViT(deepcopy(vit)), input_spec_of(vit), "cpu", dtype)
    inputs = pixels.to(input_dtype("cpu", dtype))
    with torch.inference_mode():
        want = timms(inputs).double()
        got = classifier.model(inputs, [UNPRUNED] * len(inputs)).logits.double()
    return ((got - want).norm() / want.norm()).item()
