"""The error for models that are not supported."""

SUPPORTED = (
    "timm's VisionTransformer and VisionTransformerDistilled (ViT, DeiT, DeiT III, DINOv2, CLIP, SigLIP) and "
    "Eva (EVA-02, DINOv3, PE), with plain blocks and attention"
)


class UnsupportedModelError(ValueError):
    """The model has a part that cannot be pruned correctly. ``found``: a description of this part."""

    def __init__(self, found: str) -> None:
        super().__init__(f"cannot prune this model: {found}. Supported: {SUPPORTED}.")
