"""The error of a model that is not supported."""

SUPPORTED = (
    "timm's VisionTransformer and VisionTransformerDistilled with plain Block and Attention: "
    "ViT, DeiT, DeiT III, DINOv2 (also with registers), CLIP, with CLS or average pooling"
)


class UnsupportedModelError(ValueError):
    """The model has a part whose patches cannot be pruned correctly."""

    def __init__(self, found: str) -> None:
        super().__init__(f"cannot prune this model: {found}. Supported: {SUPPORTED}.")
