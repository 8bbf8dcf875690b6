"""Detect state dicts of other libraries and unsupported forms of weights by their tensor names, and reject
them with an explanation."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from models.load.errors import ModelError

_NOT_YET = "is not supported yet; TrimViT loads the layout of timm, as in timm.create_model(...).state_dict()"

# Pattern of a tensor name -> error message, after the file name.
_LAYOUTS: tuple[tuple[str, str], ...] = (
    (
        r"lora_[AB]\b|lora_embedding|\.base_layer\.|^base_model\.model\.|\.hada_|\.lokr_",
        "contains a LoRA or PEFT adapter, not the weights of a network; merge it first: "
        "model = model.merge_and_unload(); torch.save(model.state_dict(), 'merged.pth')",
    ),
    (
        r"_packed_params|\.SCB$|\.absmax$|\.quant_state|\.qweight$|\.weight_scale(_inv)?$|\.zero_points?$",
        "contains quantised weights; save the weights from before quantisation in float32, float16 or "
        "bfloat16 (--dtype int8 quantises them here)",
    ),
    (
        r"\.(weight|bias)_orig$|\.weight_mask$|\.parametrizations\.|\.weight_[gv]$",
        "contains weights with PyTorch's pruning or parametrisation; remove it before saving "
        "(torch.nn.utils.prune.remove, torch.nn.utils.parametrize.remove_parametrizations)",
    ),
    (
        r"embeddings\.patch_embeddings?\.(projection\.)?weight$|embeddings\.patch_embedding\.weight$"
        r"|encoder\.layers?\.\d+\.(attention\.attention|self_attn)\.",
        "is in the layout of Hugging Face transformers, which needs its config.json: put this file (and "
        "preprocessor_config.json) in the same folder, or pass their folder",
    ),
    (
        r"^(.+\.)?conv_proj\.weight$|encoder\.layers\.encoder_layer_\d+\.",
        f"is in torchvision's layout, which {_NOT_YET}",
    ),
    (r"patch_embed\.projection\.weight$", f"is in the layout of MMPretrain, which {_NOT_YET}"),
    (
        r"^(optimizer|param_groups)\b|\.exp_avg(_sq)?$",
        "contains the state of an optimizer, not the weights of a network",
    ),
)


def refuse_other_layouts(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise ModelError for a known layout other than timm's. Unknown layouts pass."""
    for pattern, what in _LAYOUTS:
        if any(re.search(pattern, name) for name in tensors):
            raise ModelError(f"{path.name} {what}")
