"""The flags of `trimvit classify`."""

from pathlib import Path

from pydantic import Field, model_validator

from app.commands.fields import same_as
from app.commands.offline_config import OfflineConfig
from app.inference.options import ImageOptions, MaskFormat


class ClassifyConfig(OfflineConfig):
    """Label photographs without a server: the model is loaded once and computes them in batches.

    Each may be a file, a folder of images or - for one image from standard input. The options are those of
    POST /v1/classify."""

    top_k: int = same_as(ImageOptions, "top_k")

    as_json: bool = Field(
        default=False,
        validation_alias="json",
        description="Print a line of JSON for each photograph, in the format of the server's results. A "
        "photograph that could not be answered has a `problem`.",
    )
    mask: Path | None = Field(
        None,
        description="Save a picture of the model's input with the pruned patches dimmed: to a file for one "
        "photograph, to a folder for several.",
    )
    mask_format: MaskFormat = Field(
        "none", description="Also include the kept patches in the lines of --json, in this format."
    )
    mask_stages: bool = Field(
        default=False,
        description="Save the mask after every stage instead of only after the last; in a picture, side by "
        "side.",
    )

    @model_validator(mode="after")
    def _go_together(self) -> "ClassifyConfig":
        _ = self.options
        if self.mask_format != "none" and not self.as_json:
            raise ValueError(
                "--mask-format only applies to --json: give both, or use --mask FILE for a picture"
            )
        if self.mask_stages and self.mask is None and self.mask_format == "none":
            raise ValueError("--mask-stages needs --mask or --mask-format")
        return self

    @property
    def options(self) -> ImageOptions:
        """The options of each image. (`mask` is a file here, and `mask_format` is the option.) Raises
        ValueError as `pruned` does."""
        return self.pruned(
            ImageOptions, top_k=self.top_k, mask=self.mask_format, mask_stages=self.mask_stages
        )
